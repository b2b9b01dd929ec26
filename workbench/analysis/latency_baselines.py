"""Our kernels and models against others, as ratios of times that were taken in one run, in turns.

A machine's speed changes while it measures. So contestants take turns (ours, eager, copy, ours, eager, copy, ...), each
round gives a ratio of its own, and what is stated is their median and spread.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
import xarray as xr

from .latency import time_runs, timing_method
from .latency_contests import MODELS, OPERATORS, Contest, check_names, contests
from .latency_sweep import FEWEST, NOISY, PENDING, chosen_device, machine
from .spec import record

#: The columns of a row: in words, and in numbers.
WORDS = ("what", "shape", "direction", "against", "reason")
NUMBERS = ("ours", "other", "ratio", "p20", "p80")

NAMES = (*OPERATORS, *MODELS)


@dataclass(frozen=True)
class BaselinesSpec:
    """names: operators and models; batch: images; rounds: of all contestants in turns; budget: seconds a contest."""

    names: tuple[str, ...] = NAMES
    batch: int = 1
    rounds: int = 5
    budget: float = 2.0


def latency_baselines(
    names: Sequence[str] | None = None,
    *,
    batch: int = 1,
    rounds: int = 5,
    budget: float = 2.0,
    device: str | torch.device | None = None,
    cancelled: Callable[[], bool] | None = None,
    progress: Callable[[xr.Dataset], None] | None = None,
) -> xr.Dataset:
    """Time operators at the shapes of gspn_tiny and swin_tiny, and whole models, against other ways to do the same.

    Args:
        names: "normalise_gates", "propagate", "mix", "attend", and registered models of the families gspn and swin;
            None for all four, gspn_tiny and swin_tiny.
        batch: images.
        rounds: how often the contestants take turns.
        budget: seconds for each contest, divided evenly among its contestants and rounds; a run that is longer than its
            share is still timed once in every round, after a warm-up.
        device: None for the GPU if there is one, else the CPU.
        cancelled: ends before the next contest once it returns true; what was measured is returned.
        progress: called with the results so far, before the first and after every contest.

    Returns:
        Over row: what, shape, direction ("forward" or "forward and backward"), against (a name of `AGAINST`), ours and
        other, medians of all rounds in seconds; ratio, the median over rounds of other / ours, above 1 where ours is
        faster, with its p20 and p80; rounds; noisy; reason, why there are no times ("" where there are).
        attrs: complete, and what it was measured on and with.

    Raises:
        ValueError: an unknown name or device, or a number out of range.
    """
    spec = BaselinesSpec(tuple(dict.fromkeys(NAMES if names is None else names)), batch, rounds, budget)
    _check(spec)
    result = xr.Dataset()
    for result in stream_baselines(spec, chosen_device(device), cancelled=cancelled):
        if progress is not None:
            progress(result)
    return result


def stream_baselines(
    spec: BaselinesSpec, device: torch.device, *, cancelled: Callable[[], bool] | None = None
) -> Iterator[xr.Dataset]:
    """The results so far: before the first contest, and after each."""
    asked = list(contests(spec.names, spec.batch, device))
    rows = [_row(contest, other) for contest in asked for other in contest.against]
    attrs = record("latency_baselines", spec, _info(device))
    attrs |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "complete": False}
    yield _dataset(rows, attrs)
    at = 0
    for contest in asked:
        if cancelled is not None and cancelled():
            return
        for row in _measured(contest, spec, device):
            rows[at] = row
            at += 1
        yield _dataset(rows, attrs | {"complete": at == len(rows)})


def _measured(contest: Contest, spec: BaselinesSpec, device: torch.device) -> list[dict[str, Any]]:
    """The rows of a contest."""
    try:
        contestants = contest.prepare()
        wrong = contestants.check()
    except ModuleNotFoundError as error:
        return [_row(contest, other, str(error)) for other in contest.against]
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        return [_row(contest, other, "does not fit into the device's memory") for other in contest.against]
    others = [other for other in contest.against if other not in wrong]
    times = in_turns(
        {name: contestants.timed(name, contest.backward) for name in ("ours", *others)},
        device,
        spec.rounds,
        spec.budget,
    )
    return [
        _row(contest, other, wrong.get(other, "")) | ({} if other in wrong else ratios(times["ours"], times[other]))
        for other in contest.against
    ]


def in_turns(
    runs: dict[str, Callable[[], object]], device: torch.device, rounds: int, budget: float
) -> dict[str, np.ndarray]:
    """The median seconds of every run in each round; in a round every run has its turn, in their order."""
    share = budget / (rounds * len(runs))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(float(np.median(time_runs(run, device, share))))
    return {name: np.array(each) for name, each in times.items()}


def ratios(ours: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """The numbers of a row from the seconds of each round."""
    median, p20, p80 = (float(value) for value in np.percentile(other / ours, [50, 20, 80]))
    return {
        "ours": float(np.median(ours)), "other": float(np.median(other)), "ratio": median, "p20": p20, "p80": p80,
        "rounds": len(ours), "noisy": len(ours) < FEWEST or (p80 - p20) / median > NOISY, "reason": "",
    }  # fmt: skip


def _row(contest: Contest, other: str, reason: str = PENDING) -> dict[str, Any]:
    """A row without numbers."""
    words = {
        "what": contest.what,
        "shape": contest.shape,
        "direction": "forward and backward" if contest.backward else "forward",
        "against": other,
        "reason": reason,
    }
    return words | dict.fromkeys(NUMBERS, np.nan) | {"rounds": 0, "noisy": False}


def _dataset(rows: Sequence[dict[str, Any]], attrs: dict[str, Any]) -> xr.Dataset:
    columns = {name: np.array([row[name] for row in rows], object if name in WORDS else None) for name in rows[0]}
    return xr.Dataset({name: ("row", column) for name, column in columns.items()}, attrs=attrs)


def _info(device: torch.device) -> dict[str, Any]:
    """What identifies the measurement: the machine, the method, and the transformers that ours is compared with."""
    try:
        transformers = version("transformers")
    except PackageNotFoundError:
        transformers = "not installed"
    return machine(device) | {
        "dtype": "float32",
        "method": timing_method(device),
        "noisy_share": NOISY,
        "transformers": transformers,
    }


def _check(spec: BaselinesSpec) -> None:
    """Raise ValueError for what cannot be measured."""
    check_names(spec.names)
    if not spec.names:
        raise ValueError("Baselines need at least one name; got none.")
    for kind, value in (("batch", spec.batch), ("rounds", spec.rounds)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{kind} must be a whole number from 1; got {value!r}.")
    if not 0 < spec.budget < float("inf"):
        raise ValueError(f"budget must be a positive number; got {spec.budget!r}.")
