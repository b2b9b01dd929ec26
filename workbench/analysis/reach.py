"""How far a stack of attention blocks reaches: the smallest number of blocks after which a query depends on a key.

With M_j the relation of block j (M[p, s]: query p reads key s), p depends on s after n blocks iff the boolean product
M_n ... M_2 M_1 holds at (p, s). Every query reads itself, so what is reached stays reached.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kernels.attention import Pattern
from kernels.attention.axis import Rule

Grid = tuple[int, int]

#: What stands for "not after any number of blocks"; MOST is the largest number that is tried.
NEVER, MOST = 255, 254

#: Queries whose keys are combined at once, which bounds the memory.
_CHUNK = 512


@dataclass(frozen=True)
class Reach:
    """The blocks between every query and every key on a grid.

    parts: (H, H) and (W, W) uint8 where rows and columns are independent of each other, so that the larger number
    counts; otherwise one (N, N). A number is the blocks needed, 0 for a position itself, NEVER if none are enough.
    """

    grid: Grid
    parts: tuple[np.ndarray, ...]

    def of(self, position: Grid) -> np.ndarray:
        """(H, W) uint8: the blocks after which the query at (row, col) depends on each key."""
        row, col = position
        if len(self.parts) == 2:
            return np.maximum.outer(self.parts[0][row], self.parts[1][col])
        return self.parts[0][row * self.grid[1] + col].reshape(self.grid)

    @cached_property
    def until_global(self) -> int:
        """Blocks after which every query depends on every key, or NEVER."""
        return int(max(part.max() for part in self.parts))

    @cached_property
    def shares(self) -> np.ndarray:
        """The share of all pairs of a query and a key that are reached after 0, 1, ... blocks."""
        counts = [np.sum([np.bincount(row, minlength=NEVER + 1)[:NEVER] for row in part], 0) for part in self.parts]
        counts = [count.cumsum() / part.size for count, part in zip(counts, self.parts, strict=True)]
        share = np.prod(counts, axis=0)
        last = int(np.argmax(share == share[-1]))
        return share[: last + 1]

    def matrix(self) -> np.ndarray:
        """(N, N) uint8: the blocks between every query (first index) and every key, positions row by row."""
        if len(self.parts) == 1:
            return self.parts[0]
        rows, cols = self.parts
        n = self.grid[0] * self.grid[1]
        return np.maximum(rows[:, None, :, None], cols[None, :, None, :]).reshape(n, n)


def reach(cycle: Sequence[Pattern], grid: Grid, masks: Sequence[np.ndarray] | None = None) -> Reach:
    """The reach of a stack of blocks that take the patterns of `cycle` in turn, the first one next to the input.

    masks: the (N, N) bool relation of every pattern, where the caller has them.
    """
    if all(is_separable(pattern) for pattern in cycle):
        axes = [(pattern.rows, pattern.cols) for pattern in cycle]
        return Reach(grid, tuple(depths([_axis_mask(rules[n], grid[n]) for rules in axes]) for n in range(2)))
    return Reach(grid, (depths(masks or [pattern.mask(grid).numpy() for pattern in cycle]),))


def is_separable(pattern: Pattern) -> bool:
    """Whether the rows that a query reads do not depend on its column, nor the columns on its row."""
    return not pattern.heads and not pattern.raster and pattern.radius is None


def _axis_mask(rule: Rule, size: int) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    for i in range(size):
        mask[i, list(rule.keys(i, size))] = True
    return mask


def depths(masks: Sequence[np.ndarray]) -> np.ndarray:
    """(N, N) uint8: the blocks after which a query depends on a key, from each block's (N, N) bool relation.

    Rows of bits are combined: the keys of a query fall into runs of neighbouring positions, and the union over a run is
    the union of two precomputed stretches whose length is a power of two.
    """
    n = len(masks[0])
    blocks = [_Runs(mask) for mask in masks]
    reached = _packed(np.eye(n, dtype=bool))
    everything = _packed(np.ones((1, n), bool))
    depth = np.full((n, n), NEVER, np.uint8)
    np.fill_diagonal(depth, 0)
    idle = 0
    for step in range(1, MOST + 1):
        grown = blocks[(step - 1) % len(blocks)].union(reached)
        fresh = grown & ~reached
        reached = grown
        idle = 0 if fresh.any() else idle + 1
        if not idle:
            bits = np.unpackbits(fresh.view(np.uint8), axis=1, count=n).view(bool)
            np.putmask(depth, bits, np.uint8(step))
        if idle == len(blocks) or (reached == everything).all():
            break
    return depth


def _packed(mask: np.ndarray) -> np.ndarray:
    """(N, M) bool as rows of 64-bit words."""
    width = -(-mask.shape[1] // 64) * 64
    padded = np.zeros((mask.shape[0], width), bool)
    padded[:, : mask.shape[1]] = mask
    return np.packbits(padded, axis=1).view(np.uint64)


class _Runs:
    """The keys of every query as runs of neighbouring positions, in the order of the queries."""

    def __init__(self, mask: np.ndarray) -> None:
        edges = np.diff(np.pad(mask.view(np.int8), ((0, 0), (1, 1))), axis=1)
        query, self.first = np.nonzero(edges == 1)
        _, stop = np.nonzero(edges == -1)
        length = stop - self.first
        self.level = np.frexp(length)[1] - 1  # 2 ** level <= length < 2 ** (level + 1)
        self.second = stop - (1 << self.level)
        self.start = np.searchsorted(query, np.arange(len(mask) + 1))

    def union(self, reached: np.ndarray) -> np.ndarray:
        """For every query the union of its keys' rows."""
        stretches = [reached]  # stretches[k][i]: the union of rows i ... i + 2 ** k - 1
        for level in range(int(self.level.max())):
            last = stretches[-1]
            longer = last.copy()
            longer[: -(1 << level)] |= last[1 << level :]
            stretches.append(longer)
        table = np.stack(stretches)
        found = np.empty_like(reached)
        for begin in range(0, len(found), _CHUNK):
            edges = self.start[begin : begin + _CHUNK + 1]
            own = slice(edges[0], edges[-1])
            both = table[self.level[own], self.first[own]] | table[self.level[own], self.second[own]]
            found[begin : begin + _CHUNK] = np.bitwise_or.reduceat(both, edges[:-1] - edges[0], axis=0)
        return found
