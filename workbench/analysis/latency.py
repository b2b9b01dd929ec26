"""How long a layer and its model take on this machine, beside the least that their bytes and operations allow.

Nothing here is assumed: the copy bandwidth and the matrix rate are measured on the same device, and every time carries
its method, spread and number of runs.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from workbench.images import Image
from workbench.models.base import Mixer, VisionModel
from workbench.models.states import PropagationState, State
from workbench.operators import operator

from .spec import record

PARTS = {
    "mixing": "the map of the picture, from the gates' logits or from queries, keys and values",
    "layer": "the mixing layer with its projections",
    "model": "the whole forward pass",
}


class Part(NamedTuple):
    """Something to time: the run, the least bytes that it moves and its operations."""

    run: Callable[[], Any]
    bytes: float
    flops: float

    def floor(self, rates: dict[str, float]) -> float:
        """The least seconds at the rates of `machine_rates`."""
        return max(self.bytes / rates["bandwidth"], self.flops / rates["matmul"])


@dataclass(frozen=True)
class LatencySpec:
    """layer: the layer to time; seconds: the least time spent on each of the three parts; batch is 1."""

    layer: str
    seconds: float = 0.5


def measure(
    model: VisionModel, image: Image, layer: str, seconds: float = 0.5, progress: Callable[[str], None] | None = None
) -> xr.Dataset:
    """Time a mixing step, its layer and the whole model, forward, batch 1, on the model's device.

    Args:
        model: from `load_model`.
        image: from `load_image`.
        layer: a name from `model.layers()`.
        seconds: the least time to spend on each part.
        progress: called with the name of each part before it is timed.

    Returns:
        For each part (mixing, layer, model): median, p20, p80 and floor in seconds, n, bytes, flops; and the measured
        bandwidth (bytes a second, read plus written) and matmul rate (operations a second) that the floor is made of.

    Raises:
        ValueError: the layer is unknown.
    """
    _, mixer = model.block(layer)
    x = image.tensor.to(model.device)
    inputs = model.mixer_inputs(x)
    op = operator(model, image, layer, inputs)
    state: State = op.state
    rates = machine_rates(str(model.device))
    with torch.no_grad():
        work = layer_parts(mixer, inputs[layer], state)
        work["model"] = Part(lambda: model(x), *model_cost(model, x, inputs))
        rows = []
        for name, part in work.items():
            if progress is not None:
                progress(name)
            times = time_runs(part.run, model.device, seconds)
            rows.append((*np.percentile(times, [50, 20, 80]), len(times), part.bytes, part.flops, part.floor(rates)))
    names = ("median", "p20", "p80", "n", "bytes", "flops", "floor")
    info = op.info | {
        "batch": 1, "device": device_name(model.device), "threads": torch.get_num_threads(), "direction": "forward",
        "method": timing_method(model.device),
    }  # fmt: skip
    return xr.Dataset(
        {name: (("part",), np.array(column)) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
        | {name: ((), rate) for name, rate in rates.items()},
        coords={"part": list(work)},
        attrs=record("latency", LatencySpec(layer, seconds), info),
    )


def layer_parts(mixer: Mixer, x: torch.Tensor, state: State) -> dict[str, Part]:
    """The mixing step of a layer, and the layer with its projections; `state` is `mixer.freeze(x)`."""
    return {
        "mixing": Part(lambda: mixed(state), *mixing_cost(state)),
        "layer": Part(lambda: mixer(x), *_layer_cost(mixer, x, state)),
    }


def mixed(state: State) -> torch.Tensor:
    """The mixing step as the layer itself runs it: GSPN's makes the gates on its way."""
    return state.mixed() if isinstance(state, PropagationState) else state.mix(state.value)


def time_runs(run: Callable[[], Any], device: torch.device, seconds: float, most: float | None = None) -> np.ndarray:
    """Seconds of each timed run, after a warm-up, for at least `seconds` in all.

    With `most`, runs on a CPU are repeated until their interquartile range is under a tenth of their median, for at
    most about so many seconds; on a GPU, where runs hardly vary, for all of them.
    """
    run()
    if device.type == "cuda":
        from triton.testing import do_bench

        return np.array(do_bench(run, rep=max(1, int((most or seconds) * 1000)), return_mode="all")) / 1e3
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    if most is None:
        return np.array(timer.blocked_autorange(min_run_time=seconds).times)
    return np.array(timer.adaptive_autorange(min_run_time=seconds, max_run_time=most).times)


@lru_cache(maxsize=8)
def machine_rates(device: str, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """The device's measured copy bandwidth (bytes a second, read and written) and matrix rate (flops a second).

    The copy is of float32 numbers, the matrices are of `dtype`.
    """
    where = torch.device(device)
    source = torch.rand(2**24 if where.type == "cpu" else 2**28, device=where)
    target = torch.empty_like(source)
    side = 1024 if where.type == "cpu" else 8192
    a = torch.rand(side, side, device=where).to(dtype)
    b, c = torch.rand_like(a), torch.empty_like(a)
    copy = float(np.median(time_runs(lambda: target.copy_(source), where, 0.2)))
    product = float(np.median(time_runs(lambda: torch.mm(a, b, out=c), where, 0.2)))
    return {"bandwidth": 2 * 4 * source.numel() / copy, "matmul": 2 * a.shape[0] ** 3 / product}


def device_name(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


@lru_cache(maxsize=4)
def products_run(dtype: str) -> bool:
    """Whether this CPU survives matrix products of a dtype.

    A virtual machine may announce instructions that it does not run, and PyTorch then ends the whole process at the
    first product of bfloat16 matrices; so another process tries it, once.
    """
    attempt = f"import torch; a = torch.ones(256, 256, dtype=torch.{dtype}); a @ a"
    return subprocess.run([sys.executable, "-c", attempt], capture_output=True, check=False).returncode == 0


def timing_method(device: torch.device) -> str:
    """What `time_runs` takes times with on a device."""
    return "triton.testing.do_bench" if device.type == "cuda" else "torch.utils.benchmark"


def mixing_cost(state: State) -> tuple[float, float]:
    """(least bytes, operations) of the mixing step: every input read once, the output written once.

    Every state says its own. Propagation, K directions, C channels, N positions: reads v, three gates or their logits,
    lambda, u and D, writes y: (2 + 6 K) C N values; 12 operations for each direction, channel and position, and 8 more
    where it makes the gates. Attention: reads q, k, v and the bias, writes the output; two multiply-adds per channel
    for every key that a query reads.
    """
    return state.value.element_size() * state.least_values, state.flops


def _layer_cost(mixer: torch.nn.Module, x: torch.Tensor, state: State) -> tuple[float, float]:
    """Weights, input and output once; the operations of its convolutions and products, and of the mixing step."""
    counted, output = _counted(lambda: mixer(x))
    parameters = sum(p.numel() for p in mixer.parameters())
    least = x.element_size() * float(parameters + x.numel() + output.numel())
    return least, counted + _uncounted(state)


def model_cost(model: VisionModel, x: torch.Tensor, inputs: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Weights, image and logits once; the operations of its convolutions and products, and of every mixing step."""
    flops, logits = _counted(lambda: model(x))
    flops += sum(_uncounted(mixer.freeze(inputs[name])) for name, (_, mixer) in model.blocks().items())
    parameters = sum(p.numel() for p in model.parameters())
    return x.element_size() * float(parameters + x.numel() + logits.numel()), flops


def _counted(run: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """The operations of the products and convolutions that torch sees in a run, and its result."""
    with FlopCounterMode(display=False) as counter:
        result = run()
    return float(counter.get_total_flops()), result


def _uncounted(state: State) -> float:
    """The operations of a mixing step, less those that torch counts itself because the reference backend runs it."""
    return mixing_cost(state)[1] - _counted(lambda: mixed(state))[0]
