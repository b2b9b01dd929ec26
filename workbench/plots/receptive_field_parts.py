"""What the figures of a receptive field draw, as numbers: blocks of pixels, regions that hold a mass, outlines, axes.

Nothing here knows a drawing library. A point is (col, row) in pixel edge coordinates: (0, 0) is the top left corner of
the picture and pixel (r, c) covers the square from (c, r) to (c + 1, r + 1). A line is an (n, 2) array of points.
"""

import math
from typing import cast

import contourpy
import numpy as np
import xarray as xr

#: The longest side of a map on the screen, in blocks: more would be sent than a screen shows.
PIXELS = 512

#: Contours are drawn of means over blocks, because a map of single pixels repeats the grid of the patches and its
#: regions fall into thousands of specks: the side of a usual patch, the longest side of the map that is left, and the
#: least that it must have.
PATCH, MOST, LEAST = 4, 64, 16

Lines = list[np.ndarray]

#: The masses that the drawn regions hold.
HELD = (0.5, 0.95)


def one_unit(result: xr.Dataset, unit: int | None = None) -> xr.Dataset:
    """The result for one unit: number `unit` of several, the middle one where None; a result of one unit as it is."""
    if "unit" not in result.dims:
        return result
    return result.isel(unit=result.sizes["unit"] // 2 if unit is None else unit)


def unit_cell(result: xr.Dataset) -> tuple[int, int]:
    """The (row, col) of the result's unit on the grid of its layer."""
    result = one_unit(result)
    if "unit_row" in result.coords:
        return int(result["unit_row"]), int(result["unit_col"])
    row, col = result.attrs["spec"]["unit"][0]
    return int(row), int(col)


def picture_size(result: xr.Dataset) -> tuple[int, int]:
    """(rows, cols) of the picture in pixels."""
    return result.sizes["row"], result.sizes["col"]


def block_side(size: tuple[int, int], most: int = PIXELS) -> int:
    """Pixels along the side of a block, the smallest for which a picture has at most `most` blocks along a side."""
    return math.ceil(max(size) / most)


def contour_side(size: tuple[int, int]) -> int:
    """Pixels along the side of the blocks that contours are drawn of."""
    return max(block_side(size, MOST), min(PATCH, max(size) // LEAST))


def block_areas(size: tuple[int, int], side: int) -> np.ndarray:
    """Pixels in each block of a picture, counted from the top left; the last row and column may be cut."""
    rows, cols = (np.minimum(side, n - np.arange(0, n, side)) for n in size)
    return np.outer(rows, cols)


def block_means(values: np.ndarray, side: int) -> np.ndarray:
    """The map with each block's mean in place of its pixels: times `block_areas`, its sum is that of the map."""
    if side == 1:
        return values
    rows, cols = (np.arange(0, n, side) for n in values.shape)
    sums = np.add.reduceat(np.add.reduceat(values, rows, axis=0), cols, axis=1)
    return sums / block_areas(values.shape, side)


def held_by_rank(values: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """For each block the share of the mass in all blocks that are as high or higher: 1 holds everything.

    Args:
        values: (rows, cols) mass per pixel, not negative.
        areas: (rows, cols) pixels of each block.
    """
    levels, place = np.unique(values, return_inverse=True)  # ascending
    mass = np.bincount(place.ravel(), (values * areas).ravel(), len(levels))
    held = np.cumsum(mass[::-1])[::-1]
    return (held / (held[0] or 1.0))[place].reshape(values.shape)


def region(values: np.ndarray, areas: np.ndarray, held: float) -> np.ndarray:
    """The highest-density region: the highest blocks, down to the value at which they hold the share `held`, as bool.

    Empty where there is no mass. Blocks of equal value are in it together.
    """
    reached = held_by_rank(values, areas) >= held * (1 - 1e-12)  # that rounding does not lose the last block
    if not reached.any():
        return reached
    return (values >= values[reached].max()) & (values > 0)


def contour(result: xr.Dataset, held: float) -> Lines:
    """Closed lines around the smallest region that holds the share `held` of the mass, on means of blocks."""
    values = one_unit(result)["map"].values
    side = contour_side(values.shape)
    means = block_means(values, side)
    inside = region(means, block_areas(values.shape, side), held)
    if not inside.any():
        return []
    below = means[~inside].max(initial=0.0)  # halfway to the next value, that every block of the region is inside
    return level_lines(means, (means[inside].min() + below) / 2, side, values.shape)


def outline(mask: np.ndarray) -> Lines:
    """Closed lines along the border of a mask; its corners are cut by half a pixel."""
    return level_lines(mask.astype(float), 0.5, 1, mask.shape)


def level_lines(values: np.ndarray, level: float, side: int, size: tuple[int, int]) -> Lines:
    """Closed lines where values, which lie at the centres of blocks, cross a level; 0 is around the picture."""
    y, x = (_centres(length, side) for length in size)
    found = cast(Lines, contourpy.contour_generator(x, y, np.pad(values, 1)).lines(level))
    return [np.clip(line, 0, (size[1], size[0])) for line in found]


def _centres(length: int, side: int) -> np.ndarray:
    """The centres of blocks along an axis, the last of which may be cut, and of one more beyond each end."""
    edges = np.minimum(np.arange(0, length + side, side), length)
    return np.concatenate([[-side / 2], (edges[:-1] + edges[1:]) / 2, [length + side / 2]])


def cell_box(result: xr.Dataset) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the unit's cell in the picture."""
    rows, cols = picture_size(result)
    (row, col), (grid_rows, grid_cols) = unit_cell(result), result.attrs["spec"]["grid"]
    tall, wide = rows / grid_rows, cols / grid_cols
    return col * wide, row * tall, (col + 1) * wide, (row + 1) * tall


def centre(result: xr.Dataset) -> np.ndarray:
    """The centre of mass as a point; NaN where there is no mass."""
    row, col = one_unit(result)["centre_of_mass"].values
    return np.array([col + 0.5, row + 0.5])


def axes(result: xr.Dataset) -> Lines:
    """The principal axes as lines through the centre of mass, one standard deviation to both sides.

    A map that is as wide in all directions has no orientation; its axes are drawn along rows and columns.
    """
    result = one_unit(result)
    angle = math.radians(np.nan_to_num(float(result["orientation"])))
    along = np.array([math.cos(angle), -math.sin(angle)])  # counter-clockwise on the screen, where rows run down
    across = np.array([along[1], -along[0]])
    middle = centre(result)
    lengths = float(result["sigma_major"]), float(result["sigma_minor"])
    found = [np.stack([middle - n * way, middle + n * way]) for n, way in zip(lengths, (along, across), strict=True)]
    return [line for line in found if np.isfinite(line).all()]


def line_parts(result: xr.Dataset) -> dict[str, Lines]:
    """The lines of a map by name, those that are not known or have no mass to surround as empty lists.

    field: around what the unit can depend on without global statistics. statistics: with them, only where they add
    something. most, half: around the regions that hold 95 % and 50 % of the mass. axes: the principal axes.
    """
    result = one_unit(result)
    found: dict[str, Lines] = {"field": [], "statistics": []}
    if "theoretical" in result:
        mixing, field = result["theoretical_mixing"].values, result["theoretical"].values
        found["field"] = outline(mixing)
        found["statistics"] = [] if (mixing == field).all() else outline(field)
    return found | {"most": contour(result, HELD[1]), "half": contour(result, HELD[0]), "axes": axes(result)}


def labels(lines: dict[str, Lines], size: tuple[int, int]) -> list[tuple[float, float, str]]:
    """(col, row, text) for the lines of `line_parts`: the top left corner of a name, beside its line.

    The largest part of a region is named at its rightmost (50 %) or lowest (95 %) point, so that the names do not meet.
    """
    rows, cols = size
    found = []
    for part, held, axis in (("half", HELD[0], 0), ("most", HELD[1], 1)):
        if lines[part]:
            largest = max(lines[part], key=lambda line: np.prod(np.ptp(line, axis=0)))
            col, row = largest[largest[:, axis].argmax()]
            found.append((col, row, f"{100 * held:g} %"))
    for part, text in (("field", "theory"), ("statistics", "theory, with statistics")):
        if lines[part]:
            col, row = np.concatenate(lines[part]).min(0)
            found.append((col, row, text))
    return [(float(min(col, 0.9 * cols)), float(min(row, 0.94 * rows)), text) for col, row, text in found]
