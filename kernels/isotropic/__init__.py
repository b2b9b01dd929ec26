"""Isotropic diffusion: all positions at once, again and again, each from its eight neighbours (CSPN)."""

from typing import NamedTuple

import torch

from kernels.backends import check_tensor, choose_without_triton, run

from . import reference

#: The (row, col) offset of the neighbour that each of the eight kappas reads, in raster order.
NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))

__all__ = ["NEIGHBOURS", "Diffusion", "diffuse", "normalise_affinity"]


class Diffusion(NamedTuple):
    """What the engine needs besides tensors: the number of steps."""

    steps: int


def normalise_affinity(logits: torch.Tensor) -> torch.Tensor:
    """The weights kappa of the eight neighbours: each logit over the sum of magnitudes, signs kept.

        kappa_j = l_j / max(sum over existing j' of |l_j'|, 1e-7),    j in the order of `NEIGHBOURS`

    and exactly 0 for a neighbour outside the map, whose logit does not count in the sum: magnitudes sum to 1 at the
    border as well. Where all logits are 0, all kappas are 0 and the position keeps its first value.

    Args:
        logits: (B, 8, C or 1, H, W).

    Returns:
        kappa, same shape and dtype.

    Raises:
        TypeError: `logits` is not a floating-point tensor.
        ValueError: its shape does not fit.

    Source: CSPN (Cheng et al., ECCV 2018). Its sum counts what lies outside the map; leaving it out is our choice.
    """
    check_tensor("logits", logits, first=("logits", logits))
    if logits.ndim != 5 or logits.shape[1] != 8 or 0 in logits.shape:
        raise ValueError(f"logits must be (B, 8, C or 1, H, W) with no empty axis; got {tuple(logits.shape)}.")
    return reference.normalise_affinity(logits)


def diffuse(x: torch.Tensor, logits: torch.Tensor, *, steps: int = 24, backend: str = "auto") -> torch.Tensor:
    """Let every position take from its eight neighbours and from its own first value, `steps` times.

        H_{t+1}(p) = (1 - sum_j kappa_j(p)) H_0(p) + sum_j kappa_j(p) H_t(p + n_j),    H_0 = x

    with kappa = `normalise_affinity(logits)` and n_j in the order of `NEIGHBOURS`; what lies outside the map has
    kappa 0. The map is linear in x, and every row of its matrix sums to 1 whatever the signs: if H_0 is 1 everywhere,
    then by induction so is H_{t+1} = (1 - s) 1 + s 1. A position is reached from at most `steps` rows and columns away.

    Args:
        x: (B, C, H, W).
        logits: (B, 8, C or 1, H, W); 1 when channels share them.
        steps: how often, at least 1.
        backend: "auto" | "reference" | "cpu".

    Returns:
        H_steps: (B, C, H, W), in the dtype of `x`.

    Raises:
        TypeError: not floating-point tensors of one dtype, or `steps` is not a whole number.
        ValueError: shapes, devices or `steps` do not fit.
        BackendUnavailable: the named backend cannot run here; there is no Triton path.

    Source: CSPN (Cheng et al., ECCV 2018), 24 steps.
    """
    _check(x, logits, steps)
    chosen = choose_without_triton("diffuse", backend, x)
    kappa = normalise_affinity(logits)
    if chosen == "reference":
        return reference.diffuse(x, kappa, steps)
    import kernels.isotropic.cpu as cpu

    return run(cpu, Diffusion(steps), x, kappa)


def _check(x: torch.Tensor, logits: torch.Tensor, steps: int) -> None:
    check_tensor("x", x, first=("x", x))
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"x must be (B, C, H, W) with no empty axis; got {tuple(x.shape)}.")
    check_tensor("logits", logits, first=("x", x))
    batch, channels, height, width = x.shape
    allowed = [(batch, 8, c, height, width) for c in (channels, 1)]
    if tuple(logits.shape) not in allowed:
        raise ValueError(f"logits must be {allowed[0]}, or {allowed[1]} if shared; got {tuple(logits.shape)}.")
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"steps must be a whole number; got {type(steps).__name__} {steps!r}.")
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}.")
