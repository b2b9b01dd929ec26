"""Which keys a query reads: a `Pattern` is a rule for the rows and one for the columns, or several such for the heads.

A query at (r, c) reads every (row, col) whose row the row rule allows and whose column the column rule allows. `keys`,
`count` and `mask` answer that question for people and tests; tiles.py gives the kernels the same rules as tables.
The patterns of the published models are made by the functions in family.py.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from .axis import Axis, Rule

WHOLE = Axis()


@dataclass(frozen=True)
class Pattern:
    """The keys of a query. Patterns that have the same rules are equal, whatever their name.

    rows, cols: the rules of the axes. radius: if given, only keys nearer than this are read (Euclidean distance,
    strictly less). raster: the rules count positions along the rows, one after the other, as on a map of one row.
    heads: if given, the heads fall into as many equal groups, in order, and each group has its own pattern; the rules
    of the pattern itself then mean nothing.
    """

    rows: Rule = WHOLE
    cols: Rule = WHOLE
    name: str = field(default="", compare=False)
    radius: int | None = None
    raster: bool = False
    heads: tuple["Pattern", ...] = ()

    @property
    def groups(self) -> tuple["Pattern", ...]:
        """The pattern of each group of heads; the pattern itself where all heads have the same."""
        return self.heads or (self,)

    @property
    def whole(self) -> bool:
        """Whether every query reads every key, so that the keys need not lie on the grid of the queries."""
        return not self.heads and self.rows == self.cols == WHOLE and self.radius is None

    def check(self, grid: tuple[int, int]) -> None:
        """Raise ValueError unless the pattern is defined on a grid of (rows, cols)."""
        for pattern in self.groups:
            height, width = pattern.on(grid)
            pattern.rows.check(height, pattern.name, "rows")
            pattern.cols.check(width, pattern.name, "columns")

    def on(self, grid: tuple[int, int]) -> tuple[int, int]:
        """The grid as the rules see it."""
        return (1, grid[0] * grid[1]) if self.raster else grid

    def keys(self, position: tuple[int, int], grid: tuple[int, int]) -> list[tuple[int, int]]:
        """The (row, col) positions that the query at `position` reads on a grid of (rows, cols), row by row.

        Where groups of heads have patterns of their own: what any of them reads.

        Raises:
            ValueError: `position` is not on the grid, or the pattern is not defined on it.
        """
        (r, c), (height, width) = position, grid
        if not (0 <= r < height and 0 <= c < width):
            raise ValueError(
                f"position must be a (row, col) on the grid of {height} rows and {width} columns; got {position}."
            )
        self.check(grid)
        if self.heads:
            return sorted({key for pattern in self.heads for key in pattern.keys(position, grid)})
        if self.raster:
            return [divmod(n, width) for n in self.cols.keys(r * width + c, height * width)]
        found = [(row, col) for row in self.rows.keys(r, height) for col in self.cols.keys(c, width)]
        if self.radius is not None:
            found = [(row, col) for row, col in found if (row - r) ** 2 + (col - c) ** 2 < self.radius**2]
        return found

    def count(self, grid: tuple[int, int]) -> np.ndarray:
        """How many keys each query reads: an (H, W) array of whole numbers."""
        height, width = grid
        if self.heads:
            return self.mask(grid).sum(1).view(height, width).numpy()
        self.check(grid)
        down, across = self.on(grid)
        if self.radius is not None:
            return _count_near(self.rows.mask(down), self.cols.mask(across), self.radius).reshape(height, width)
        return (self.rows.counts(down)[:, None] * self.cols.counts(across)[None, :]).reshape(height, width)

    def mask(self, grid: tuple[int, int]) -> torch.Tensor:
        """The whole relation for small grids: (N, N) bool, N = H * W, True where the query (first index) reads the key.

        Positions are numbered row by row.
        """
        self.check(grid)
        if self.heads:
            return torch.stack([pattern.mask(grid) for pattern in self.heads]).any(0)
        height, width = self.on(grid)
        rows, cols = (torch.from_numpy(rule.mask(size)) for rule, size in ((self.rows, height), (self.cols, width)))
        both = rows[:, None, :, None] & cols[None, :, None, :]
        if self.radius is not None:
            down, right = (_distances(size) for size in (height, width))
            both &= down[:, None, :, None] ** 2 + right[None, :, None, :] ** 2 < self.radius**2
        return both.reshape(height * width, height * width)

    def bias_shape(self, heads: int, grid: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """The shape of the relative position bias, (heads, 2 kh - 1, 2 kw - 1).

        kh and kw are the kernel sizes; where an axis is read as a whole, its size on `grid`.

        Raises:
            ValueError: the pattern has no one table: its groups of heads differ, it counts along rows, or it needs a
                grid and got none.
        """
        shapes = {_extents(pattern, grid) for pattern in self.groups}
        if len(shapes) > 1 or None in shapes:
            raise ValueError(f"{self.name} has no relative position bias, because its distances are not of one kind.")
        (extents,) = shapes
        assert extents is not None
        return heads, 2 * extents[0] - 1, 2 * extents[1] - 1


def _extents(pattern: Pattern, grid: tuple[int, int] | None) -> tuple[int, int] | None:
    """Kernel sizes of a pattern's axes; None if it has no table of distances."""
    if pattern.raster or not isinstance(pattern.rows, Axis) or not isinstance(pattern.cols, Axis):
        return None
    if grid is None and None in (pattern.rows.kernel, pattern.cols.kernel):
        raise ValueError(f"The bias of {pattern.name} depends on the map: give its grid.")
    height, width = grid or (0, 0)
    return pattern.rows.extent(height), pattern.cols.extent(width)


def _count_near(rows: np.ndarray, cols: np.ndarray, radius: int) -> np.ndarray:
    """For each query, how many keys that the masks of the axes allow are nearer than the radius: (rows, cols)."""
    down, right = (_distances(len(mask)).numpy() for mask in (rows, cols))
    count = np.zeros((len(rows), len(cols)), np.int64)
    for distance in range(1 - radius, radius):
        reach = math.isqrt(radius**2 - 1 - distance**2)
        exists = (rows & (down == distance)).any(1)
        count += exists[:, None] * (cols & (abs(right) <= reach)).sum(1)[None, :]
    return count


def _distances(size: int) -> torch.Tensor:
    """(size, size): query minus key."""
    positions = torch.arange(size)
    return positions[:, None] - positions[None, :]
