"""Is a propagation stable, and what does it still know of the past? Of made-up gates, or of a layer's at an image.

h_i = w_i h_{i-1} + lam_i x_i line by line, w_i tridiagonal with three gates a row. Row-stochastic w_i (not negative,
rows that sum to 1) keep the accumulated weight W_ij = w_i ... w_{j+1} row-stochastic too: then nothing explodes and no
row sum decays, although what a row says about its origin may still fade.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from workbench.models.states import PropagationState
from workbench.names import unknown

from .spec import record
from .stability_lines import float64, gate_numbers, growth, spectral_radii, step_matrices
from .stability_scan import Scanned, of_layer, synthetic
from .stability_spec import StabilitySpec
from .stability_steps import Accumulated, accumulate

CONDITIONS = ("row_stochastic", "stable", "dense")

#: Units in the last place that a sum of three rounded gates may be off 1: two sums and a quotient round, and one spare.
ROUNDINGS = 4


@dataclass(frozen=True)
class LayerSpec:
    """What is looked at in a layer: a direction, a channel of its gates, and what is propagated under them."""

    direction: str
    channel: int
    chosen: str
    x: str


def stability(source: Any, *, direction: str | None = None, channel: int | None = None, x: Any = None) -> xr.Dataset:
    """Measure whether a propagation is row-stochastic, stable and dense, line by line and step by step.

    Gates and recurrence run in the Spec's or the layer's dtype, on the reference backend, which rounds after every
    operation; sums, norms and products of those gates are evaluated in float64. W starts at line 0 and ends with the
    last line of the first chunk.

    Args:
        source: a `StabilitySpec`, or the operator of a propagation layer at an image, from `workbench.operator`.
        direction: of a layer, a name out of `op.groups`; None for the first one.
        channel: of a layer; None for the channel whose gates' row sums are furthest from 1.
        x: what is propagated instead of the Spec's picture or the layer's own values: an `Image`, which is stretched
            to the grid, or an array (rows, cols) or (rows, cols, channels).

    Returns:
        Per line, from where the direction starts: row_sum_error, the largest |sum of gates - 1|; min_gate, the smallest
        gate that has a neighbour; abs_sum, the largest sum of |gates|, the infinity norm of w; spectral_radius, NaN
        where it was not computed; max_hidden, max |h|, NaN where h is not finite; nonfinite, how many values are not;
        bound, the sum of max |lam_j x_j| up to the line, which holds while abs_sum is at most 1 (attrs "bound_holds");
        general_bound, which holds for any gates; white, what 1 everywhere would come to under row-stochastic gates.
        Per number of steps from line 0, sampled: norm_inf, norm_2, dobrushin (half the largest l1 distance of two
        rows), effective_width (standard deviation of the middle row, positions), accumulated_row_sum_error.
        Per distance in lines: gradient, the largest |d h_i / d x_0| of a pixel by a pixel; gradient_norm, its infinity
        norm, which row-stochastic gates keep at max |lam_0|.
        accumulated (to, from): W; accumulated_row_sum (to); step_matrix (to, from): w of line 1. hidden (row, col): the
        mean of h over its channels; propagated and given (row, col, channel): h and x.
        verdict (condition): whether it is row_stochastic, stable (sums of |gates| at most 1, and h finite: sufficient,
        not necessary) and dense (no entry of W is 0). first_violation (condition, axis): line and cross index of the
        first pixel against it, -1 where none. growth_rate: of ln norm_inf a line, over the second half of the steps.
        attrs hold the Spec, the tolerance, and what overflowed. Numbers after an overflow are NaN; nothing is raised.

    Raises:
        TypeError: `source` is neither a Spec nor an operator.
        ValueError: a direction, channel or x that does not fit, or a layer that does not propagate.

    Source: GSPN (arXiv 2501.12381), theorems 1 and 2; SPN (NeurIPS 2017) for sums of |gates| at most 1.
    """
    if isinstance(source, StabilitySpec):
        if direction is not None or channel is not None:
            raise ValueError("direction and channel choose gates of a layer; a StabilitySpec has its own direction.")
        scan = synthetic(source, x)
        info: dict[str, Any] = {"dtype": source.dtype, "backend": "reference", "device": "cpu", "gates": "synthetic"}
        if x is not None:
            info["x_sha256"] = _fingerprint(scan.x)
        return _measure(scan, record("stability", source, info))
    state = getattr(source, "state", None)
    if not hasattr(source, "groups") or state is None:
        raise TypeError(f"stability takes a StabilitySpec or an operator; got {type(source).__name__}.")
    if not isinstance(state, PropagationState):
        raise ValueError(f"{source.info['layer']} of {source.info['model']} has no gates: it does not propagate lines.")
    return _of_operator(source, state, direction, channel, x)


def worst_channel(state: PropagationState, direction: str) -> int:
    """The channel whose gates' row sums over existing neighbours are furthest from 1; the lowest of equals."""
    errors = []
    for channel in range(state.gates.shape[3]):
        scan_gates = state.gates[state.groups.index(direction), :, 0, channel]
        errors.append(float((scan_gates.sum(0) - 1).abs().max()))
    return int(np.argmax(errors))


def _of_operator(op: Any, state: PropagationState, direction: str | None, channel: int | None, x: Any) -> xr.Dataset:
    direction = op.groups[0] if direction is None else direction
    if direction not in op.groups:
        raise ValueError(unknown("direction", direction, op.groups, of=op.info["layer"]))
    count = op.value.shape[0]
    if channel is not None and (isinstance(channel, bool) or not isinstance(channel, int) or not 0 <= channel < count):
        raise ValueError(f"channel must be from 0 to {count - 1}, or None for the worst one; got {channel!r}.")
    if state.chunk == 1:
        raise ValueError("The layer's chunks are one line long: nothing is propagated from line to line.")
    chosen = "worst" if channel is None else "given"
    channel = worst_channel(state, direction) if channel is None else channel
    scan = of_layer(state, direction, channel, x)
    spec = LayerSpec(direction, channel, chosen, "layer" if x is None else _fingerprint(scan.x))
    ran = {"gates": "layer", "gates_backend": op.info["backend"], "backend": "reference"}
    return _measure(scan, record("stability", spec, op.info | ran))


def _fingerprint(x: torch.Tensor) -> str:
    return hashlib.sha256(float64(x).tobytes()).hexdigest()


def _measure(scan: Scanned, attrs: dict[str, Any]) -> xr.Dataset:
    """The Dataset of a propagation that ran."""
    gates = float64(scan.gates)
    pixel = gate_numbers(gates, scan.read)
    lines = {
        "row_sum_error": np.abs(pixel["sum"] - 1).max(1),
        "min_gate": pixel["smallest"].min(1),
        "abs_sum": pixel["magnitude"].max(1),
        "spectral_radius": spectral_radii(np.where(scan.read[:, None], gates, 0.0)),
    }
    lines |= growth(scan, lines["abs_sum"])
    steps = accumulate(np.where(scan.read[:, None], gates, 0.0)[:, : scan.span], float64(scan.lam)[:, 0])
    tolerance = ROUNDINGS * torch.finfo(scan.gates.dtype).eps / 2
    verdict, violation = _verdicts(scan, pixel, steps, tolerance)
    given, propagated = scan.picture(scan.x), scan.picture(scan.h)
    overflow = np.flatnonzero(lines["nonfinite"])
    attrs = attrs | {
        "tolerance": tolerance,
        "bound_holds": bool((pixel["magnitude"] <= 1 + tolerance)[_reading(scan)].all()),
        "overflow_line": int(overflow[0]) if len(overflow) else -1,
        "largest_finite": float(torch.finfo(scan.gates.dtype).max),
        "accumulated_steps": steps.steps,
        "dense_after": steps.dense_after,
        "chunk": scan.chunk,
        "norms": "float64 of the gates as rounded",
    }
    with np.errstate(all="ignore"):
        hidden = propagated.mean(2)
    w = steps.matrix
    return xr.Dataset(
        {name: (("line",), values) for name, values in lines.items()}
        | {name: (("steps",), values) for name, values in steps.per_sample.items()}
        | {name: (("distance",), values) for name, values in steps.per_distance.items()}
        | {
            "accumulated": (("to", "from"), w),
            "accumulated_row_sum": (("to",), w.sum(1)),
            "step_matrix": (("to", "from"), step_matrices(gates[:, 1:2])[0]),
            "hidden": (("row", "col"), hidden),
            "propagated": (("row", "col", "channel"), propagated),
            "given": (("row", "col", "channel"), given),
            "verdict": (("condition",), np.array(verdict)),
            "first_violation": (("condition", "axis"), np.array(violation)),
            "growth_rate": _rate(steps),
        },
        coords={
            "steps": steps.sampled,
            "distance": np.arange(scan.span),
            "line": np.arange(gates.shape[1]),
            "condition": list(CONDITIONS),
            "axis": ["line", "cross"],
        },
        attrs=attrs,
    )


def _reading(scan: Scanned) -> np.ndarray:
    """(lines,) bool: the lines that read the one before, all but the first of every chunk."""
    lines = scan.gates.shape[1]
    return np.arange(lines) % (scan.chunk or lines) != 0


def _verdicts(
    scan: Scanned, pixel: dict[str, np.ndarray], steps: Accumulated, tolerance: float
) -> tuple[list[bool], list[tuple[int, int]]]:
    """Whether each condition holds, and the (line, cross index) of the first pixel against it."""
    reading = _reading(scan)[:, None]
    stochastic = (pixel["smallest"] >= 0) & (np.abs(pixel["sum"] - 1) <= tolerance)
    finite = torch.isfinite(scan.h).all(0).numpy()
    contracting = pixel["magnitude"] <= 1 + tolerance
    violations = [_first(reading & ~stochastic), _first((reading & ~contracting) | ~finite)]
    holes = (steps.matrix == 0).any(1)
    violations.append((steps.steps, int(np.argmax(holes))) if holes.any() else (-1, -1))
    return [place == (-1, -1) for place in violations], violations


def _first(against: np.ndarray) -> tuple[int, int]:
    """(line, cross index) of the first True in the order of the scan, (-1, -1) where there is none."""
    if not against.any():
        return -1, -1
    line, cross = divmod(int(np.argmax(against)), against.shape[1])
    return line, cross


def _rate(steps: Accumulated) -> float:
    """The slope of ln norm_inf over the second half of the steps that are finite; NaN of fewer than two."""
    norms = steps.per_sample["norm_inf"]
    usable = np.flatnonzero(np.isfinite(norms) & (norms > 0))
    later = usable[steps.sampled[usable] >= steps.steps / 2]
    if len(later) < 2:
        return float("nan")
    first, last = later[0], later[-1]
    return float(np.log(norms[last] / norms[first]) / (steps.sampled[last] - steps.sampled[first]))
