"""What each line's gates are, and how large the hidden line grows: everything of the laboratory that is per line."""

import numpy as np
import torch
from scipy.linalg import eigvalsh_tridiagonal

from .stability_scan import Scanned

#: Lines whose spectral radius is computed where that needs a general eigenvalue problem, for lines of 64 positions.
GENERAL_LINES = 24


def float64(maps: torch.Tensor) -> np.ndarray:
    return maps.to(torch.float64).numpy()


def gate_numbers(gates: np.ndarray, read: np.ndarray) -> dict[str, np.ndarray]:
    """Per pixel, over the gates that have a neighbour: sum, sum of magnitudes and smallest gate, (lines, cross) each.

    Args:
        gates: (3, lines, cross) float64.
        read: (3, cross) bool, which gates have a neighbour to read.
    """
    existing = np.where(read[:, None], gates, 0.0)
    smallest = np.where(read[:, None], gates, np.inf).min(0)
    return {"sum": existing.sum(0), "magnitude": np.abs(existing).sum(0), "smallest": smallest}


def spectral_radii(gates: np.ndarray) -> np.ndarray:
    """The largest |eigenvalue| of every line's tridiagonal matrix, (lines,); NaN where it was not computed.

    With g2[k] g0[k + 1] >= 0 the matrix has the eigenvalues of a symmetric one with off-diagonals sqrt(g2[k] g0[k+1]);
    gates that are not negative have the largest eigenvalue as radius (Perron and Frobenius). Lines with a product
    below zero need the general problem, and of many such lines only some evenly spaced ones are computed.
    """
    products = gates[2, :, :-1] * gates[0, :, 1:]
    radii = np.full(gates.shape[1], np.nan)
    finite = np.isfinite(gates).all((0, 2))
    alike = finite & (products >= 0).all(1)
    last = gates.shape[2] - 1
    for line in np.flatnonzero(alike):
        diagonal, off = gates[1, line], np.sqrt(products[line])
        ends = [last] if diagonal.min() >= 0 else [0, last]
        found = [eigvalsh_tridiagonal(diagonal, off, select="i", select_range=(end, end)) for end in ends]
        radii[line] = np.abs(found).max()
    other = np.flatnonzero(finite & ~alike)
    if len(other):
        count = max(4, int(GENERAL_LINES * (64 / gates.shape[2]) ** 2))
        some = other[np.unique(np.linspace(0, len(other) - 1, min(count, len(other))).astype(int))]
        radii[some] = np.abs(np.linalg.eigvals(step_matrices(gates[:, some]))).max(1)
    return radii


def step_matrices(gates: np.ndarray) -> np.ndarray:
    """Gates (3, lines, cross) -> (lines, cross, cross): w[a, k] is what position a reads of k of the line before."""
    lines, cross = gates.shape[1:]
    w = np.zeros((lines, cross, cross))
    at = np.arange(cross)
    w[:, at, at] = gates[1]
    w[:, at[1:], at[:-1]] = gates[0, :, 1:]
    w[:, at[:-1], at[1:]] = gates[2, :, :-1]
    return w


def growth(scan: Scanned, norms: np.ndarray) -> dict[str, np.ndarray]:
    """How large h grows, per line: max_hidden, nonfinite, the bounds, and what a white picture would come to.

        bound_i = sum over lines j <= i of the chunk of max |lam_j x_j|,    row-stochastic gates, or |sum| at most 1
        general_bound_i = ||w_i|| general_bound_{i-1} + max |lam_i x_i|,    any gates, in the infinity norm

    Args:
        scan: the propagation.
        norms: (lines,) the infinity norm of every line's matrix.
    """
    h, lam = float64(scan.h), float64(scan.lam)
    finite = np.isfinite(h)
    nonfinite = (~finite).sum((0, 2))
    source = np.abs(lam * float64(scan.x)).max((0, 2))
    weight = np.abs(lam).mean((0, 2))
    lines = len(source)
    bound, general, white = np.empty(lines), np.empty(lines), np.empty(lines)
    with np.errstate(all="ignore"):
        for line in range(lines):
            first = line % (scan.chunk or lines) == 0
            bound[line] = source[line] + (0.0 if first else bound[line - 1])
            general[line] = source[line] + (0.0 if first else norms[line] * general[line - 1])
            white[line] = 1.0 if scan.white else weight[line] + (0.0 if first else white[line - 1])
    return {
        "max_hidden": np.where(nonfinite > 0, np.nan, np.abs(np.where(finite, h, 0.0)).max((0, 2))),
        "nonfinite": nonfinite,
        "bound": bound,
        "general_bound": np.where(np.isfinite(general), general, np.nan),
        "white": white,
    }
