"""Time against resolution: operators and whole models at several sizes, with the floor of each and scaling exponents.

A sweep goes from the smallest size to the largest, so that a curve of every name grows at once. What would take more
time or memory than allowed is left out with the reason, foretold from the size before, and never an error.
"""

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr

from workbench.models import list_models
from workbench.names import unknown

from .latency import device_name, machine_rates, products_run, time_runs, timing_method
from .latency_ops import HEAD, OPERATORS, Cost, OnMaps, WholeModel
from .spec import record

DTYPES = ("float32", "float16", "bfloat16")

#: A result is noisy if its runs spread further than this share, (p80 - p20) / median, or are fewer than FEWEST.
NOISY, FEWEST = 0.2, 3

#: The least seconds of timed runs, as a share of the budget, before a small spread ends them.
LEAST = 0.2

#: How many budgets a run may be foretold to take where a single smaller size was measured.
PATIENCE = 4

#: Without a limit, the share of the free memory that a run may hold.
MEMORY = 0.5

NUMBERS = ("median", "p20", "p80", "bytes", "flops", "floor", "peak")
PENDING = "not measured yet"
NO_PEAK = "not on a CPU, where PyTorch counts no peak"
PEAK = "torch.cuda.max_memory_allocated"


@dataclass(frozen=True)
class LatencySweepSpec:
    """What a sweep measures.

    names: operators of `OPERATORS` or models; sizes: the side of an operator's map, of a model's image; channels: of
    operators; backward: forward and backward in one time; budget: seconds for each name and size; memory: bytes that a
    run may hold, None for half of what is free.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    batch: int = 1
    channels: int = 64
    dtype: str = "float32"
    backward: bool = False
    budget: float = 2.0
    memory: float | None = None


class Done(NamedTuple):
    """A size that was measured: its cost, and the median of its runs."""

    size: int
    cost: Cost
    seconds: float


def latency_sweep(
    names: Sequence[str],
    sizes: Sequence[int],
    *,
    batch: int = 1,
    channels: int = 64,
    dtype: str = "float32",
    backward: bool = False,
    device: str | torch.device | None = None,
    budget: float = 2.0,
    memory: float | None = None,
    cancelled: Callable[[], bool] | None = None,
    progress: Callable[[xr.Dataset], None] | None = None,
) -> xr.Dataset:
    """Time operators and models at several sizes, each until its runs agree or its budget ends.

    Args:
        names: registered models (their whole forward pass) or operators: "gspn global", "gspn local",
            "full attention", "window attention", "neighborhood attention", "axial attention", "linear attention",
            "depthwise 7x7", "depthwise 31x31".
        sizes: sides in positions of an operator's map, in pixels of a model's image.
        batch: images.
        channels: channels of the operators, a multiple of 32 or less than that.
        dtype: "float32" | "float16" | "bfloat16".
        backward: time forward and backward together, with the gradients of all inputs (a model's: of all weights).
        device: None for the GPU if there is one, else the CPU.
        budget: seconds for each name and size, after one warm-up run.
        memory: bytes that a run may hold by an estimate, None for half of what is free.
        cancelled: ends the sweep before the next name and size once it returns true; what was measured is returned.
        progress: called with the results so far, before the first and after every name and size.

    Returns:
        Over (what, size): median, p20, p80 and floor in seconds, n runs, noisy, least bytes, flops, peak (bytes, NaN on
        a CPU) and reason, why there is no time ("" where there is one); over what: exponent and residual, see
        `exponents`; and the measured bandwidth and matmul rate that floors are made of. attrs: complete, and what it
        was measured on and with.

    Raises:
        ValueError: an unknown name, size, dtype or device, or a number out of range.
    """
    spec = LatencySweepSpec(
        tuple(dict.fromkeys(names)), tuple(sorted(set(sizes))), batch, channels, dtype, backward, budget, memory
    )
    _check(spec)
    where = chosen_device(device)
    if where.type == "cpu" and dtype != "float32" and not products_run(dtype):
        raise ValueError(f"dtype={dtype!r} cannot be measured on this CPU, where its products end the process.")
    result = xr.Dataset()
    for result in stream_sweep(spec, where, cancelled=cancelled):
        if progress is not None:
            progress(result)
    return result


def stream_sweep(
    spec: LatencySweepSpec, device: torch.device, *, cancelled: Callable[[], bool] | None = None
) -> Iterator[xr.Dataset]:
    """The results so far of a sweep: before the first name and size, and after each of them."""
    rates = machine_rates(str(device), getattr(torch, spec.dtype))
    work = {name: _work(name, spec, device) for name in spec.names}
    sweep = _empty(spec, device, rates)
    yield with_exponents(sweep)
    before: dict[str, list[Done]] = {name: [] for name in spec.names}
    for size in spec.sizes:
        for name in spec.names:
            if cancelled is not None and cancelled():
                return
            found = _cell(work[name], size, before[name], spec, device, rates)
            if isinstance(found, str):
                sweep["reason"].loc[name, size] = found
            else:
                row, cost = found
                before[name].append(Done(size, cost, row["median"]))
                for variable, value in row.items():
                    sweep[variable].loc[name, size] = value
            sweep.attrs["complete"] = bool((sweep["reason"] != PENDING).all())
            yield with_exponents(sweep)


def _cell(
    work: OnMaps | WholeModel,
    size: int,
    before: Sequence[Done],
    spec: LatencySweepSpec,
    device: torch.device,
    rates: dict[str, float],
) -> tuple[dict[str, Any], Cost] | str:
    """The numbers of one name and size, and its cost; or why there are none."""
    try:
        guess = work.guess(size, before[-1][:2] if before else None)
        if guess is not None and (reason := _too_much(guess, before, spec, device, rates)):
            return reason
        run, cost = work.prepare(size)
        peak = _peak(run, device)
        times = time_runs(run, device, LEAST * spec.budget, most=spec.budget)
    except RuntimeError as error:
        # A GPU has an exception of its own for it, the CPU only words; as for an operation without this dtype.
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            return "does not fit into the device's memory"
        if "not implemented" in str(error):
            return f"PyTorch has an operation of it not for {spec.dtype} on this device"
        raise
    except ValueError as error:  # a size that the model or the pattern does not take
        return str(error)
    row = summary(times) | {"bytes": cost.bytes, "flops": cost.flops, "floor": _floor(cost, rates), "peak": peak}
    return row | {"reason": ""}, cost


def summary(times: np.ndarray) -> dict[str, Any]:
    """median, p20, p80, n and noisy of timed runs."""
    median, p20, p80 = (float(value) for value in np.percentile(times, [50, 20, 80]))
    noisy = len(times) < FEWEST or (p80 - p20) / median > NOISY
    return {"median": median, "p20": p20, "p80": p80, "n": len(times), "noisy": noisy}


def _floor(cost: Cost, rates: dict[str, float]) -> float:
    return max(cost.bytes / rates["bandwidth"], cost.flops / rates["matmul"])


def _too_much(
    cost: Cost,
    before: Sequence[Done],
    spec: LatencySweepSpec,
    device: torch.device,
    rates: dict[str, float],
) -> str:
    """Why a size is not even tried: more memory than allowed, or a run foretold to be too long; else nothing."""
    allowed = spec.memory or MEMORY * _free_memory(device)
    if cost.held > allowed:
        return f"would hold about {cost.held / 2**30:.2g} GiB, more than the {allowed / 2**30:.2g} GiB that it may"
    seconds = foretold([(_floor(done.cost, rates), done.seconds) for done in before], _floor(cost, rates))
    # From a single time, most of which may not grow with the size, too much would be foretold.
    if seconds > spec.budget * (PATIENCE if len(before) == 1 else 1):
        return f"one run would take about {seconds:.2g} s, and the budget is {spec.budget:g} s"
    return ""


def foretold(measured: Sequence[tuple[float, float]], floor: float) -> float:
    """The seconds of a run with a floor, from the (floor, seconds) of smaller sizes.

    On the line through the last two in logarithms, not steeper than the floors grow; from one, as the floors grow; from
    none, the floor itself.
    """
    if not measured:
        return floor
    slope = 1.0
    if len(measured) > 1:
        (floors, times) = zip(*measured[-2:], strict=True)
        slope = float(np.clip(np.log(times[1] / times[0]) / np.log(floors[1] / floors[0]), 0, 1))
    return max(floor, measured[-1][1] * (floor / measured[-1][0]) ** slope)


def _peak(run: Callable[[], Any], device: torch.device) -> float:
    """Bytes allocated at the most during a run, its inputs included; NaN on a CPU, where nothing counts them."""
    if device.type != "cuda":
        return float("nan")
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return float(torch.cuda.max_memory_allocated(device))


def _free_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return float(2**33)  # macOS does not say how much is free


def _work(name: str, spec: LatencySweepSpec, device: torch.device) -> OnMaps | WholeModel:
    dtype = getattr(torch, spec.dtype)
    if name in OPERATORS:
        return OnMaps(OPERATORS[name], spec.batch, spec.channels, dtype, spec.backward, device)
    return WholeModel(name, spec.batch, dtype, spec.backward, device)


def _empty(spec: LatencySweepSpec, device: torch.device, rates: dict[str, float]) -> xr.Dataset:
    """A sweep without results."""
    shape = (len(spec.names), len(spec.sizes))
    over = ("what", "size")
    arrays = {name: (over, np.full(shape, np.nan)) for name in NUMBERS}
    arrays["n"] = (over, np.zeros(shape, np.int64))
    arrays["noisy"] = (over, np.zeros(shape, bool))
    arrays["reason"] = (over, np.full(shape, PENDING, object))
    info = machine(device) | {
        "direction": "forward and backward" if spec.backward else "forward",
        "method": timing_method(device),
        "noisy_share": NOISY,
        "memory_method": PEAK if device.type == "cuda" else NO_PEAK,
    }
    attrs = record("latency_sweep", spec, info)
    return xr.Dataset(
        {**arrays, **{name: ((), rate) for name, rate in rates.items()}},
        coords={"what": list(spec.names), "size": list(spec.sizes)},
        attrs=attrs | {"date": datetime.now(UTC).isoformat(timespec="seconds"), "complete": False},
    )


def with_exponents(sweep: xr.Dataset) -> xr.Dataset:
    """A copy of a sweep with the exponents of what it has measured."""
    return sweep.copy(deep=True).merge(exponents(sweep["median"]), combine_attrs="override")


def exponents(median: xr.DataArray) -> xr.Dataset:
    """How time grows with the number of pixels: time ~ pixels ** exponent.

    The slope of log median against log pixels by least squares, over the sizes that have a time, and the residual: the
    root of the mean squared distance from the line, in units of log time (0.1: about 10 %). NaN with fewer than two
    sizes; with two the residual is 0, because a line meets both.

    Args:
        median: seconds over (what, size), NaN where there is no time.

    Returns:
        exponent and residual over what.
    """
    found = []
    for row in median.transpose("what", "size").values:
        measured = np.isfinite(row)
        if measured.sum() < 2:
            found.append((np.nan, np.nan))
            continue
        pixels, time = 2 * np.log(median["size"].values[measured]), np.log(row[measured])
        slope, start = np.polyfit(pixels, time, 1)
        found.append((slope, np.sqrt(np.mean((time - slope * pixels - start) ** 2))))
    slopes, residuals = np.array(found).reshape(-1, 2).T
    return xr.Dataset(
        {"exponent": ("what", slopes), "residual": ("what", residuals)}, coords={"what": median["what"].values}
    )


def machine(device: torch.device) -> dict[str, Any]:
    """What identifies the machine of a measurement: device, its type, processor, cores and threads."""
    return {
        "device": device_name(device),
        "device_type": device.type,
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    """The processor in words, as far as the system tells."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"


def chosen_device(device: str | torch.device | None) -> torch.device:
    """The device of that name, None for the GPU if there is one, else the CPU; ValueError if it cannot be used."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda'; got {str(device)!r}.")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={str(chosen)!r} needs a GPU that PyTorch can use, and there is none: use 'cpu'.")
    return chosen


def _check(spec: LatencySweepSpec) -> None:
    """Raise ValueError for what no sweep can measure."""
    known = [*OPERATORS, *list_models()]
    for name in spec.names:
        if name not in known:
            raise ValueError(unknown("operator or model", name, known))
    if not spec.names or not spec.sizes:
        raise ValueError("A sweep needs at least one name and one size; got none.")
    for kind, value in (*(("sizes", size) for size in spec.sizes), ("batch", spec.batch), ("channels", spec.channels)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{kind} must be whole numbers from 1; got {value!r}.")
    if spec.channels > HEAD and spec.channels % HEAD:
        raise ValueError(
            f"channels must be a multiple of {HEAD}, the channels of a head, or less; got {spec.channels}."
        )
    if spec.dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {spec.dtype!r}.")
    for kind, number in (("budget", spec.budget), ("memory", spec.memory)):
        if number is not None and not 0 < number < float("inf"):
            raise ValueError(f"{kind} must be a positive number; got {number!r}.")
