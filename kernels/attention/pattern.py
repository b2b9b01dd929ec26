"""Which keys a query reads: a rule per axis, and a pattern made of two such rules.

A query at (r, c) reads every (row, col) whose row the row rule allows and whose column the column rule allows. `keys`,
`count` and `mask` answer that question for people and tests; `cells` gives the kernels the same rule as groups of
queries that share their keys.
"""

import operator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch


class Cells(NamedTuple):
    """The cells of one axis, each a group of query slots that read the same key slots.

    table (cells, 3) int32 holds one cell a row: the position of its query slot 0, of its key slot 0, and the step from
    a slot to the next. A slot may fall outside the map; it is then empty, and the others keep their numbers, so two
    slots are as far apart in a cropped cell as in a whole one.
    """

    queries: int  # query slots in a whole cell
    keys: int  # key slots in a whole cell
    table: np.ndarray


@dataclass(frozen=True)
class Axis:
    """The rule of one axis: cells of `kernel` positions, the first boundary at `offset`; a query reads its own cell.

    The cell of position i is floor((i + kernel - offset) / kernel), so the cells are [0, offset), then `kernel`
    positions each, and the last one ends with the map.
    """

    kernel: int
    offset: int = 0

    def keys(self, position: int, size: int) -> range:
        """The positions, out of `size`, that the query at `position` reads."""
        start = self.start((position + self.kernel - self.offset) // self.kernel)
        return range(max(start, 0), min(start + self.kernel, size))

    def start(self, cell: int) -> int:
        """The first position of a cell, before cropping: negative for a cell that the map cuts on its left."""
        return cell * self.kernel - self.kernel + self.offset

    def cells(self, size: int) -> Cells:
        """The cells of a map with `size` positions along this axis."""
        return _cells(self, size)


@dataclass(frozen=True)
class Pattern:
    """A rule for the rows and one for the columns. Patterns that read the same keys are equal, whatever their name."""

    rows: Axis
    cols: Axis
    name: str = field(compare=False)

    def keys(self, position: tuple[int, int], grid: tuple[int, int]) -> list[tuple[int, int]]:
        """The (row, col) positions that the query at `position` reads on a grid of (rows, cols), row by row.

        Raises:
            ValueError: `position` is not on the grid.
        """
        (r, c), (height, width) = position, grid
        if not (0 <= r < height and 0 <= c < width):
            raise ValueError(
                f"position must be a (row, col) on the grid of {height} rows and {width} columns; got {position}."
            )
        return [(row, col) for row in self.rows.keys(r, height) for col in self.cols.keys(c, width)]

    def count(self, grid: tuple[int, int]) -> np.ndarray:
        """How many keys each query reads: an (H, W) array of whole numbers."""
        height, width = grid
        rows = np.array([len(self.rows.keys(r, height)) for r in range(height)])
        cols = np.array([len(self.cols.keys(c, width)) for c in range(width)])
        return rows[:, None] * cols[None, :]

    def mask(self, grid: tuple[int, int]) -> torch.Tensor:
        """The whole relation for small grids: (N, N) bool, N = H * W, True where the query (first index) reads the key.

        Positions are numbered row by row.
        """
        height, width = grid
        rows, cols = _reads(self.rows, height), _reads(self.cols, width)
        both = rows[:, None, :, None] & cols[None, :, None, :]
        return both.reshape(height * width, height * width)

    def bias_shape(self, heads: int) -> tuple[int, int, int]:
        """The shape of the relative position bias: (heads, 2 kh - 1, 2 kw - 1)."""
        return heads, 2 * self.rows.kernel - 1, 2 * self.cols.kernel - 1


def swin(window: int | tuple[int, int], shift: int | tuple[int, int] = 0) -> Pattern:
    """Windows of `window` positions, their boundaries moved by `shift`: Swin's plain and shifted windows.

    A query reads the keys of its own window. Shifted windows are the same windows with an offset and smaller border
    windows, which is what rolling the map and masking the wrapped-around keys amounts to.

    Args:
        window: positions per side, or (rows, cols).
        shift: 0 <= shift < window, or (rows, cols).

    Raises:
        ValueError: `window` or `shift` is out of range.

    Source: Swin (arXiv 2103.14030), section 3.2.
    """
    kernel, offset = _pair("window", window), _pair("shift", shift)
    if min(kernel) < 1:
        raise ValueError(f"window must be at least 1 position a side; got {window}.")
    if not all(0 <= o < k for o, k in zip(offset, kernel, strict=True)):
        raise ValueError(f"shift must be at least 0 and smaller than the window {window}; got {shift}.")
    name = f"swin {kernel[0]}x{kernel[1]}"
    if any(offset):
        name += f" shifted by {offset[0]}x{offset[1]}"
    return Pattern(Axis(kernel[0], offset[0]), Axis(kernel[1], offset[1]), name)


def block(window: int | tuple[int, int]) -> Pattern:
    """Windows of `window` positions that start at the map's corner; a query reads its own window.

    Args:
        window: positions per side, or (rows, cols).

    Raises:
        ValueError: `window` is out of range.
    """
    pattern = swin(window)
    return replace(pattern, name=f"block {pattern.rows.kernel}x{pattern.cols.kernel}")


def _pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    try:
        rows, cols = value if isinstance(value, tuple | list) else (value, value)
        return operator.index(rows), operator.index(cols)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a whole number or a (rows, cols) pair of them; got {value!r}.") from None


def _reads(axis: Axis, size: int) -> torch.Tensor:
    """(size, size) bool: True where the query (first index) reads the key along this axis."""
    reads = torch.zeros(size, size, dtype=torch.bool)
    for i in range(size):
        reads[i, list(axis.keys(i, size))] = True
    return reads


@lru_cache(maxsize=256)
def _cells(axis: Axis, size: int) -> Cells:
    first = 0 if axis.offset else 1  # without an offset the cell that ends at position 0 is empty
    starts = np.arange(axis.start(first), size, axis.kernel, dtype=np.int32)
    table = np.stack([starts, starts, np.ones_like(starts)], axis=1)
    table.setflags(write=False)
    return Cells(axis.kernel, axis.kernel, table)
