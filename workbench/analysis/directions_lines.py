"""Where the lines of a direction lie on a map, and how the released merge carries positions into the scans' frames."""

from typing import NamedTuple

import numpy as np

Position = tuple[int, int]


class Lines(NamedTuple):
    """The lines of one direction.

    along (H, W): a position's line, counted from where the direction starts; across (H, W): its index on the line;
    number: how many lines there are; backward: whether lines are counted from the right or the bottom edge.
    """

    along: np.ndarray
    across: np.ndarray
    number: int
    backward: bool


def lines_of(direction: str, grid: Position) -> Lines:
    """The lines of a name out of `kernels.propagation.DIRECTIONS` on a grid of (rows, cols)."""
    rows, cols = np.indices(grid)
    horizontal = direction in ("left_right", "right_left")
    backward = direction in ("right_left", "bottom_top")
    along, across = (cols, rows) if horizontal else (rows, cols)
    count = grid[1] if horizontal else grid[0]
    return Lines(count - 1 - along if backward else along, across, count, backward)


def released_place(k: int, position: Position, grid: Position) -> Position:
    """Where the released merge carries a position for direction k, on a square map: v, v^T, flip_W(v), flip_W(v^T)."""
    row, col = position if k % 2 == 0 else position[::-1]
    return row, col if k < 2 else grid[1] - 1 - col


def released_maps(k: int, maps: np.ndarray) -> np.ndarray:
    """(H, W) in the frame of direction k's scan -> in image coordinates, the inverse of how v is carried there."""
    maps = maps if k < 2 else maps[:, ::-1]
    return maps if k % 2 == 0 else maps.T
