"""Numbers of a map of mass: how much lies within a square, a disc or the heaviest pixels, where, how wide, which way.

A map of mass is (H, W), not negative and finite; all numbers but those of `replknet_ratio` are of the map divided by
its sum, so that no factor changes them, and NaN where that sum is 0. Places are (row, col) in pixel index coordinates:
pixel 0 is the interval from -0.5 to 0.5, and its centre is 0.
"""

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr

#: The shares of the mass whose areas are stated.
THRESHOLDS = (0.2, 0.3, 0.5, 0.99)

#: The fractions of the pixels at which `share_ranked` is stated.
FRACTIONS = np.linspace(0.0, 1.0, 1001)

#: Relative differences below this are rounding: a map whose widths differ by less has no direction.
ROUNDING = 1e-9

Place = tuple[float, float]


def cell_centre(cell: tuple[int, int], grid: tuple[int, int], size: tuple[int, int]) -> Place:
    """The geometric centre of a cell of `grid` in a picture of `size` pixels: (r + 0.5) * size / grid - 0.5.

    Cell 16 of 32 over 1024 pixels covers the pixels 512 to 543; its centre is 527.5. The cells tile the picture evenly:
    where a layer leaves out or adds pixels at the border, what it reads is centred some pixels off, near the borders
    the most.
    """
    row, col = ((c + 0.5) * pixels / cells - 0.5 for c, cells, pixels in zip(cell, grid, size, strict=True))
    return row, col


def measures(mass: np.ndarray, centre: Place, thresholds: Sequence[float] = THRESHOLDS) -> xr.Dataset:
    """Every number of a map of mass.

    Args:
        mass: (H, W), not negative.
        centre: (row, col), what squares and discs are centred on.
        thresholds: shares of the mass, between 0 and 1.

    Returns:
        share_square (side), share_ranked (fraction), share_radial (radius), r and r_ranked (threshold), centre_of_mass
        (axis), sigma_major, sigma_minor, orientation, anisotropy; see the functions of the same names and `moments`.
        radius goes to the diagonal of the picture.
    """
    total = mass.sum()
    share = mass / (total if total > 0 else 1.0)
    square, ranked = share_square(share, centre), _ranked(share)
    numbers = moments(share)
    found = xr.Dataset(
        {
            "share_square": (("side",), square),
            "share_ranked": (("fraction",), np.interp(FRACTIONS * mass.size, np.arange(mass.size + 1), ranked)),
            "share_radial": (("radius",), share_radial(share, centre)),
            "r": (("threshold",), _reached(square, thresholds) ** 2 / mass.size),
            "r_ranked": (("threshold",), _reached(ranked[1:], thresholds) / mass.size),
            "centre_of_mass": (("axis",), np.array(numbers.pop("centre_of_mass"))),
            **{name: ((), value) for name, value in numbers.items()},
        },
        coords={
            "side": np.arange(1, len(square) + 1),
            "fraction": FRACTIONS,
            "radius": np.arange(math.ceil(math.hypot(*mass.shape)) + 1),
            "threshold": list(thresholds),
            "axis": ["row", "col"],
        },
    )
    return found if total > 0 else xr.full_like(found, np.nan)


def share_square(share: np.ndarray, centre: Place) -> np.ndarray:
    """The mass inside centred squares of 1, 2, ... pixels a side, as far as they lie inside the picture: (side,).

    A pixel that the border of the square cuts counts in proportion to its area inside. One NaN if no square fits.
    """
    # The border of the square in edge coordinates, in which pixel i goes from i to i + 1.
    middle = [place + 0.5 for place in centre]
    room = min(min(place, length - place) for place, length in zip(middle, share.shape, strict=True))
    half = np.arange(1, int(2 * room + ROUNDING) + 1) / 2
    if not len(half):  # the cell is smaller than a pixel, at the border
        return np.full(1, np.nan)
    integral = np.pad(share, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    rows, cols = ([place - half, place + half] for place in middle)
    corners = [[_interpolated(integral, row, col) for col in cols] for row in rows]
    return corners[1][1] - corners[0][1] - corners[1][0] + corners[0][0]


def share_radial(share: np.ndarray, centre: Place) -> np.ndarray:
    """The mass of the pixels whose centre is at most 0, 1, 2, ... pixels from `centre`: (radius,)."""
    rows, cols = (np.arange(length) - place for length, place in zip(share.shape, centre, strict=True))
    ring = np.ceil(np.hypot(rows[:, None], cols[None, :])).astype(int)
    radii = math.ceil(math.hypot(*share.shape)) + 1
    return np.bincount(ring.ravel(), share.ravel(), minlength=radii)[:radii].cumsum()


def moments(share: np.ndarray) -> dict[str, float | Place]:
    """Where the mass of a map with sum 1 lies, how wide it is, and along which direction.

    centre_of_mass (row, col); sigma_major and sigma_minor, its standard deviations in pixels along the principal axes;
    orientation of the major axis in degrees, in (-90, 90]: 0 along a row of pixels, positive counter-clockwise on the
    screen, NaN where the widths are equal; anisotropy = 1 - sigma_minor / sigma_major, NaN for a single pixel.
    """
    rows, cols = (np.arange(length) for length in share.shape)
    by_row, by_col = share.sum(1), share.sum(0)
    row, col = by_row @ rows, by_col @ cols
    vertical, horizontal = by_row @ (rows - row) ** 2, by_col @ (cols - col) ** 2
    mixed = -((rows - row) @ share @ (cols - col))  # on the screen rows go down
    if abs(mixed) <= ROUNDING * (vertical + horizontal):
        mixed = 0.0  # along a row or a column: rounding must not turn 90 degrees into -90
    middle, split = (vertical + horizontal) / 2, math.hypot((horizontal - vertical) / 2, mixed)
    major, minor = (math.sqrt(max(variance, 0.0)) for variance in (middle + split, middle - split))
    turned = split > ROUNDING * middle
    return {
        "centre_of_mass": (float(row), float(col)),
        "sigma_major": major,
        "sigma_minor": minor,
        "orientation": math.degrees(math.atan2(mixed, (horizontal - vertical) / 2) / 2) if turned else math.nan,
        "anisotropy": 1 - minor / major if major > 0 else math.nan,
    }


def replknet_ratio(raw: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> dict[float, float | None]:
    """The "high-contribution area ratio" as the popular script computes it, to compare with published tables only.

    The map is log10(1 + s) of the raw mean gradient s, divided by its maximum; r(t) is the area share
    (2 i + 1)^2 / (H W) of the first square of half-width i = 1, 2, ... around pixel (H // 2, W // 2) that holds more
    than t of its sum. **It depends on the scale of s**: a model whose gradients are all 100 times as large has another
    r, and r(0.5) of one Gaussian goes from 3 % to 16 % between the scales 1 and 1e6. Use `r` of the Dataset to compare
    models. The square is centred on a pixel, half a cell off the unit where the grid is even.

    Args:
        raw: (H, W), not normalised: `raw_map` of a receptive field.
        thresholds: shares of the sum.

    Returns:
        Threshold -> r; None where the script's loop ends without an answer, at i = H // 2 - 1.

    Source: RepLKNet (arXiv 2203.06717) and the recipe of its published analysis script.
    """
    logarithm = np.log10(1 + raw)
    if not logarithm.max() > 0:
        return dict.fromkeys(map(float, thresholds))
    logarithm /= logarithm.max()
    away = [np.abs(np.arange(length) - length // 2) for length in raw.shape]
    half_width = np.maximum(away[0][:, None], away[1][None, :])
    inside = np.bincount(half_width.ravel(), logarithm.ravel()).cumsum()[1 : min(raw.shape) // 2] / logarithm.sum()
    found: dict[float, float | None] = {}
    for threshold in thresholds:
        more = np.flatnonzero(inside > threshold)
        found[float(threshold)] = float((2 * (more[0] + 1) + 1) ** 2 / raw.size) if len(more) else None
    return found


def _interpolated(table: np.ndarray, row: np.ndarray, col: np.ndarray) -> np.ndarray:
    """The values of a table between its entries, linear along both axes."""
    values: np.ndarray = np.zeros(len(row))
    top, down = _weights(row, table.shape[0])
    left, right = _weights(col, table.shape[1])
    for r, by_row in ((top, 1 - down), (top + 1, down)):
        for c, by_col in ((left, 1 - right), (left + 1, right)):
            values += by_row * by_col * table[r, c]
    return values


def _weights(place: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The entry before a place, and how far it is to the next one."""
    before = np.clip(np.floor(place), 0, length - 2).astype(int)
    return before, place - before


def _ranked(share: np.ndarray) -> np.ndarray:
    """The mass of the 0, 1, 2, ... heaviest pixels."""
    return np.concatenate([[0.0], np.sort(share, axis=None)[::-1].cumsum()])


def _reached(share: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """The place at which a curve, 0 at 0 and share[i - 1] at i, first reaches each threshold; NaN where it does not."""
    curve = np.concatenate([[0.0], share])
    found = np.full(len(thresholds), np.nan)
    for n, threshold in enumerate(thresholds):
        reached = np.flatnonzero(curve >= threshold)
        if len(reached):
            last = reached[0]
            found[n] = last - (curve[last] - threshold) / (curve[last] - curve[last - 1])
    return found
