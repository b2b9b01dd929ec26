"""What t steps do together: the accumulated weight W = w_t ... w_1 from the first line, and how its rows spread."""

from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import pdist

#: Numbers of steps at which the costly measures are taken, for lines of 64 positions.
SAMPLES = 32


class Accumulated(NamedTuple):
    """matrix (to, from) after `steps` steps, the last one that is finite; numbers per step and per sampled step."""

    matrix: np.ndarray
    steps: int
    sampled: np.ndarray
    per_sample: dict[str, np.ndarray]
    per_distance: dict[str, np.ndarray]
    dense_after: int


def sampled_steps(last: int, cross: int) -> np.ndarray:
    """Which numbers of steps from 1 to `last` are looked at closely: all of few, otherwise denser at the start.

    The measures take cross^3 operations each, so there are fewer of them on wider lines.
    """
    count = int(np.clip(SAMPLES * (64 / cross) ** 2, 12, SAMPLES))
    if last <= count:
        return np.arange(1, last + 1)
    spaced = np.geomspace(1, last, count // 2), np.linspace(1, last, count - count // 2)
    return np.unique(np.concatenate(spaced).round().astype(int))


def accumulate(gates: np.ndarray, lam: np.ndarray) -> Accumulated:
    """Multiply up W_i0 = w_i w_{i-1} ... w_1 over the lines of one chunk, in float64.

    Args:
        gates: (3, lines, cross) float64, line 0 the chunk's first, which reads nothing.
        lam: (C, cross) float64, the input weights of line 0.

    Returns:
        per_sample: norm_inf, norm_2, dobrushin, effective_width, accumulated_row_sum_error (steps).
        per_distance, from 0 to lines - 1: gradient = max |W_i0 lam_0| over all pairs of pixels, and gradient_norm, its
        infinity norm over channels. NaN from the step on at which W is not finite in float64.
        dense_after: the smallest number of steps after which no entry of W is 0, or -1.
    """
    lines, cross = gates.shape[1:]
    w, last, dense_after = np.eye(cross), 0, -1
    sampled = sampled_steps(lines - 1, cross)
    wanted, kept = set(sampled.tolist()), {}
    strength = np.abs(lam).max(0)
    largest, norm = np.full(lines, np.nan), np.full(lines, np.nan)
    largest[0] = norm[0] = strength.max()
    with np.errstate(all="ignore"):
        for t in range(1, lines):
            following = _step(gates[:, t], w)
            magnitude = np.abs(following) * strength
            largest[t], norm[t] = magnitude.max(), magnitude.sum(1).max()
            if not np.isfinite(norm[t]):
                largest[t:] = norm[t:] = np.nan
                break
            w, last = following, t
            if t in wanted:
                kept[t] = w
            if dense_after < 0 and t >= cross - 1 and (w != 0).all():
                dense_after = t
    per_sample = _measures(sampled, kept)
    return Accumulated(w, last, sampled, per_sample, {"gradient": largest, "gradient_norm": norm}, dense_after)


def _step(gates: np.ndarray, w: np.ndarray) -> np.ndarray:
    """w_t W for the gates (3, cross) of line t."""
    product = gates[1, :, None] * w
    product[1:] += gates[0, 1:, None] * w[:-1]
    product[:-1] += gates[2, :-1, None] * w[1:]
    return product


def _measures(sampled: np.ndarray, kept: dict[int, np.ndarray]) -> dict[str, np.ndarray]:
    """The measures of each sampled matrix; NaN where there is none."""
    names = ("norm_inf", "norm_2", "dobrushin", "effective_width", "accumulated_row_sum_error")
    found = {name: np.full(len(sampled), np.nan) for name in names}
    at = [n for n, t in enumerate(sampled) if int(t) in kept]
    if not at:
        return found
    w = np.stack([kept[int(sampled[n])] for n in at])
    with np.errstate(all="ignore"):
        found["norm_inf"][at] = np.abs(w).sum(2).max(1)
        found["norm_2"][at] = norms_2(w)
        found["dobrushin"][at] = [dobrushin(each) for each in w]
        found["effective_width"][at] = [effective_width(each[len(each) // 2]) for each in w]
        found["accumulated_row_sum_error"][at] = np.abs(w.sum(2) - 1).max(1)
    return found


def norms_2(w: np.ndarray) -> np.ndarray:
    """The largest singular value of each matrix (matrices, n, n), the root of the largest eigenvalue of w w^T."""
    scale = np.abs(w).max((1, 2))
    scaled = w / np.where(scale > 0, scale, 1.0)[:, None, None]  # so that no square overflows
    largest = np.linalg.eigvalsh(scaled @ scaled.swapaxes(1, 2))[:, -1]
    return scale * np.sqrt(np.maximum(largest, 0.0))


def dobrushin(w: np.ndarray) -> float:
    """Half the largest l1 distance of two rows: of row-stochastic w, 1 - min over a, b of sum_k min(w[a,k], w[b,k])."""
    return float(pdist(w, "cityblock").max() / 2)


def effective_width(row: np.ndarray) -> float:
    """The standard deviation, in positions, of |row| read as a distribution; NaN where it is 0 everywhere."""
    mass = np.abs(row)
    total = mass.sum()
    if not total > 0:
        return float("nan")
    share, places = mass / total, np.arange(len(row))
    return float(np.sqrt((share * (places - share @ places) ** 2).sum()))
