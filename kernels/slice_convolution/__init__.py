"""Slice-by-slice convolution: each line of the map is convolved and added to the next one (SCNN)."""

from typing import NamedTuple

import torch

from kernels.backends import check_tensor, choose_without_triton, run
from kernels.propagation import DIRECTIONS

from . import reference

#: The order of SCNN: down, up, right, left.
ORDER = ("top_bottom", "bottom_top", "left_right", "right_left")

__all__ = ["ORDER", "Slices", "activity", "slice_convolve"]


class Slices(NamedTuple):
    """What the engine needs besides tensors: the direction of every pass, in order."""

    directions: tuple[str, ...]


def slice_convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    active: torch.Tensor | None = None,
    *,
    directions: tuple[str, ...] = ORDER,
    backend: str = "auto",
) -> torch.Tensor:
    """Pass over the map line by line, once for each direction, one pass after the other, each on what the last left.

    With X_t line t of the map, counted from where the direction starts, n along the line, and h = (k - 1) / 2,

        X'_t[o, n] = X_t[o, n] + relu( sum over i, j of weight[o, i, j] X'_{t-1}[i, n + j - h] ),    X'_0 = X_0

    where what lies outside the line is 0. Lines are rows for the vertical directions, and n counts columns; columns for
    the horizontal ones, and n counts rows. Everything is in image coordinates.

    With `active` given, relu(c) is replaced by c where it is True and by 0 elsewhere. The map is then linear in x, and
    with `active = activity(x, weight)` it is the derivative at x. There is no bias, so the map is positively
    homogeneous, and its derivative at x applied to x is the map itself.

    Args:
        x: (B, C, H, W).
        weight: (K, C, C, k), k odd, for K = len(directions) passes: (pass, out, in, along the line).
        active: (K, B or 1, C, H, W) bool, or None for the ReLU.
        directions: K names out of `kernels.propagation.DIRECTIONS`, repeats allowed.
        backend: "auto" | "reference" | "cpu".

    Returns:
        (B, C, H, W), in the dtype of `x`.

    Raises:
        TypeError: not floating-point tensors of one dtype, or `active` is not bool.
        ValueError: shapes, devices or directions do not fit.
        BackendUnavailable: the named backend cannot run here; there is no Triton path.

    Source: SCNN (Pan et al., AAAI 2018), which has k = 9, order `ORDER`, and no condition that keeps it from growing.
    """
    directions = _check(x, weight, active, directions)
    if choose_without_triton("slice_convolve", backend, x) == "reference":
        return reference.slice_convolve(x, weight, active, directions)
    import kernels.slice_convolution.cpu as cpu

    return run(cpu, Slices(directions), x, weight, active)


def activity(
    x: torch.Tensor, weight: torch.Tensor, *, directions: tuple[str, ...] = ORDER, backend: str = "auto"
) -> torch.Tensor:
    """Where the ReLU of every pass of `slice_convolve` lets its argument through: (K, B, C, H, W) bool.

    False on the first line of a pass, which has no line before it. Arguments and errors as in `slice_convolve`; no
    gradients.
    """
    directions = _check(x, weight, None, directions)
    with torch.no_grad():
        if choose_without_triton("activity", backend, x) == "reference":
            return reference.activity(x, weight, directions)
        import kernels.slice_convolution.cpu as cpu

        return cpu.activity(Slices(directions), x, weight)


def _check(
    x: torch.Tensor, weight: torch.Tensor, active: torch.Tensor | None, directions: tuple[str, ...]
) -> tuple[str, ...]:
    directions = (directions,) if isinstance(directions, str) else tuple(directions)
    if not directions or any(d not in DIRECTIONS for d in directions):
        raise ValueError(f"directions must be one or more of {', '.join(DIRECTIONS)}; got {directions}.")
    check_tensor("x", x, first=("x", x))
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"x must be (B, C, H, W) with no empty axis; got {tuple(x.shape)}.")
    check_tensor("weight", weight, first=("x", x))
    batch, channels, height, width = x.shape
    expected = (len(directions), channels, channels)
    if weight.ndim != 4 or tuple(weight.shape[:3]) != expected or weight.shape[3] % 2 == 0:
        raise ValueError(
            f"weight must be (K, C, C, k) = {expected} and an odd k, for {len(directions)} directions and "
            f"{channels} channels; got {tuple(weight.shape)}."
        )
    if active is not None:
        if not isinstance(active, torch.Tensor) or active.dtype != torch.bool:
            given = active.dtype if isinstance(active, torch.Tensor) else type(active).__name__
            raise TypeError(f"active must be a bool tensor or None; got {given}.")
        allowed = [(len(directions), b, channels, height, width) for b in (batch, 1)]
        if tuple(active.shape) not in allowed:
            raise ValueError(f"active must be {allowed[0]}, or {allowed[1]} if shared; got {tuple(active.shape)}.")
        if active.device != x.device:
            raise ValueError(f"active must be on the device of x, {x.device}; got {active.device}.")
    return directions
