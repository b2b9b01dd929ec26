"""Where a model spends its time, layer by layer, next to what each of its layers lets a position read.

Every layer is timed by itself on what it receives for a picture, the whole model once. What the model takes beyond its
mixing layers (MLPs, norms, embeddings, the head) is the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from workbench.images import Image
from workbench.models.base import VisionModel
from workbench.operators import operator
from workbench.operators.channel import ChannelOperator

from .affinity import AffinitySpec, affinity, aggregation
from .latency import Part, layer_parts, machine_rates, model_cost, time_runs, timing_method
from .latency_sweep import LEAST, NOISY, machine, summary
from .running_field import model_info
from .spec import record

#: What is timed of every layer; `latency.PARTS` says what each is.
TIMED = ("mixing", "layer")

NUMBERS = ("median", "p20", "p80", "floor", "bytes", "flops")

CENTRE = (0.5, 0.5)

#: The whole model, whose runs are long, has as many times the seconds of a part.
WHOLE = 8

CHANNELS = "reads channels, not positions"
NEGATIVE = (
    "the layers by themselves took {layers:.4g} ms together, more than the whole model's {model:.4g} ms: their times "
    "are noisy, or a layer runs slower by itself"
)


@dataclass(frozen=True)
class LatencyLayersSpec:
    """seconds: for each part of each layer, at most; query: (row, col) as shares of the picture from 0 to 1."""

    seconds: float = 0.2
    query: tuple[float, float] = CENTRE


def layer_latency(
    model: VisionModel,
    image: Image,
    *,
    seconds: float = 0.2,
    query: tuple[float, float] | None = None,
    cancelled: Callable[[], bool] | None = None,
    progress: Callable[[xr.Dataset, int, int], None] | None = None,
) -> xr.Dataset:
    """Time the mixing step and the whole of every mixing layer, and the model, forward, batch 1, on its device.

    Args:
        model: from `load_model`.
        image: from `load_image`; decides the grids.
        seconds: for each of the two parts of each layer, after a warm-up, less where runs agree; 8 times as many for
            the model.
        query: the position whose affinity is shown, (row, col) as shares of the picture from 0 to 1, None: its centre.
        cancelled: ends before the next layer once it returns true; what was measured is returned.
        progress: called after each layer with the results so far, how many layers are done, and how many there are.

    Returns:
        Over (layer, part), part "mixing" or "layer": median, p20, p80 and floor in seconds, least bytes and flops, n
        runs (0: not measured yet, and the rest NaN) and noisy. model_median and so on: the same of the whole model.
        rest: the model's median less those of its layers, seconds, NaN until all are measured. Over layer: kind, rows
        and cols of its grid, covered_rows and covered_cols of it that the picture covers (the others are padding), and
        position (layer, axis) of the query. affinity (layer, row, col): what the query reads, mean of |.| over channels
        or heads, all groups merged, NaN outside the layer's grid; affinity_note: why there is none, else "". bandwidth
        and matmul: the measured rates that floors are made of. attrs: complete; note, about the rest, or "".

    Raises:
        ValueError: the image does not fit the model, or seconds or query is out of range.
    """
    spec = LatencyLayersSpec(seconds, CENTRE if query is None else tuple(query))  # type: ignore[arg-type]
    _check(spec)
    model.check_size(*image.tensor.shape[-2:])
    x = image.tensor.to(model.device)
    inputs = model.mixer_inputs(x)
    with torch.no_grad():
        rates = machine_rates(str(model.device))
        result = _empty(model, image, spec, rates)
        whole = Part(lambda: model(x), *model_cost(model, x, inputs))
        for name, value in _times(whole, model.device, WHOLE * seconds, rates).items():
            result[f"model_{name}"] = value
        names = list(inputs)
        for done, layer in enumerate(names, 1):
            if cancelled is not None and cancelled():
                break
            op = operator(model, image, layer, inputs)
            parts = layer_parts(model.block(layer)[1], inputs[layer], op.state)
            for part in TIMED:
                for name, value in _times(parts[part], model.device, seconds, rates).items():
                    result[name].loc[layer, part] = value
            _add_affinity(result, op, layer, spec)
            if done == len(names):
                _complete(result)
            if progress is not None:
                progress(result.copy(deep=True), done, len(names))
    return result


def _times(part: Part, device: torch.device, seconds: float, rates: dict[str, float]) -> dict[str, Any]:
    """The numbers of one part; its runs end when they agree or the seconds are over."""
    times = time_runs(part.run, device, LEAST * seconds, most=seconds)
    return summary(times) | {"floor": part.floor(rates), "bytes": part.bytes, "flops": part.flops}


def _complete(result: xr.Dataset) -> None:
    """Add what only a whole measurement tells."""
    layers, model = float(result["median"].sel(part="layer").sum()), float(result["model_median"])
    result["rest"] = model - layers
    note = NEGATIVE.format(layers=1e3 * layers, model=1e3 * model) if layers > model else ""
    result.attrs |= {"complete": True, "note": note}


def _add_affinity(result: xr.Dataset, op: Any, layer: str, spec: LatencyLayersSpec) -> None:
    """What the query reads in a layer, aggregated as the affinity page opens; nothing of a layer without positions."""
    if isinstance(op, ChannelOperator):
        result["affinity_note"].loc[layer] = CHANNELS
        return
    rows, cols = op.grid
    covered = op.info.get("unpadded", op.grid)
    position = tuple(min(int(share * n), n - 1) for share, n in zip(spec.query, covered, strict=True))
    asked = AffinitySpec(position)
    result["affinity"].loc[layer][:rows, :cols] = affinity(op, asked)["merged"].values
    result["affinity_note"].loc[layer] = ""
    result["position"].loc[layer] = list(position)
    result["aggregation"].loc[layer] = aggregation(asked, op)


def _empty(model: VisionModel, image: Image, spec: LatencyLayersSpec, rates: dict[str, float]) -> xr.Dataset:
    """A measurement without results."""
    size = image.tensor.shape[-2], image.tensor.shape[-1]
    layers, covered = model.layers(size), model.grids(*size)
    grids = np.array([layer.grid for layer in layers])
    shape, count = (len(layers), len(TIMED)), len(layers)
    over = ("layer", "part")
    variables: dict[str, Any] = {name: (over, np.full(shape, np.nan)) for name in NUMBERS}
    variables |= {"n": (over, np.zeros(shape, np.int64)), "noisy": (over, np.zeros(shape, bool)), "rest": np.nan}
    for name, (rows, cols) in {"": grids.T, "covered_": np.array(covered).T}.items():
        variables |= {f"{name}rows": ("layer", rows), f"{name}cols": ("layer", cols)}
    variables |= {
        "kind": ("layer", [layer.kind for layer in layers]),
        "position": (("layer", "axis"), np.full((count, 2), -1)),
        "affinity": (("layer", "row", "col"), np.full((count, *grids.max(0)), np.nan, np.float32)),
        "affinity_note": ("layer", np.full(count, "not measured yet", object)),
        "aggregation": ("layer", np.full(count, "", object)),
    }
    info = model_info(model, model.device, image.tensor.dtype) | machine(model.device) | {
        "image": image.name, "image_sha256": image.sha256, "size": tuple(size), "batch": 1, "direction": "forward",
        "method": timing_method(model.device), "noisy_share": NOISY,
    }  # fmt: skip
    return xr.Dataset(
        variables | {name: ((), rate) for name, rate in rates.items()},
        coords={"layer": [layer.name for layer in layers], "part": list(TIMED), "axis": ["row", "col"]},
        attrs=record("latency_layers", spec, info) | {"complete": False, "note": ""},
    )


def _check(spec: LatencyLayersSpec) -> None:
    """Raise ValueError for a Spec that nothing can be measured by."""
    if not 0 < spec.seconds < float("inf"):
        raise ValueError(f"seconds must be a positive number; got {spec.seconds!r}.")
    if len(spec.query) != 2 or not all(0 <= share <= 1 for share in spec.query):
        raise ValueError(f"query must be (row, col) as shares of the picture from 0 to 1; got {spec.query!r}.")
