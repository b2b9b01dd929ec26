"""How much faster than full attention a pattern can be when whole tiles of keys are skipped, and only whole tiles.

A kernel takes a tile of queries and visits every tile of keys in which one of them reads something. The bound is the
number of key tiles of full attention over those that the worst query tile visits: the grid of programs is static, so
the slowest one counts. Along an axis whose window is a stretch, a query tile visits

    V = max over query tiles of ceil(end / T_key) - floor(start / T_key)

key tiles, from the first key of its queries to after their last one, and bound = product of ceil(L / T_key) / V.

Source: generalised neighbourhood attention (arXiv 2504.16922), appendix B.1 (NATTENSim, static key tiles).
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from kernels.attention import Axis, Pattern

Sizes = tuple[int, ...]


def tile_bound(rules: Sequence[Axis], size: Sequence[int], query_tile: Sequence[int], key_tile: Sequence[int]) -> float:
    """The bound for independent rules along any number of axes: a sequence, an image, a video.

    A dilated axis is taken as its residue classes, one after the other, as NATTEN permutes tokens; their classes may
    end within a tile.

    Args:
        rules: the rule of every axis.
        size: positions along every axis.
        query_tile, key_tile: positions of a tile along every axis.

    Returns:
        key tiles of full attention over key tiles that the pattern's worst query tile visits.

    Raises:
        ValueError: the numbers of axes differ, a size is less than 1, or a rule is not defined on its axis.

    Source: arXiv 2504.16922, appendix B.1.
    """
    lengths = {len(rules), len(size), len(query_tile), len(key_tile)}
    if len(lengths) > 1 or not rules:
        raise ValueError(
            f"rules, size, query_tile and key_tile must have one entry per axis; got {len(rules)}, {len(size)}, "
            f"{len(query_tile)} and {len(key_tile)} entries."
        )
    for name, values in (("size", size), ("query_tile", query_tile), ("key_tile", key_tile)):
        if min(values) < 1:
            raise ValueError(f"{name} must be at least 1 along every axis; got {tuple(values)}.")
    bound = 1.0
    for rule, length, queries, keys in zip(rules, size, query_tile, key_tile, strict=True):
        rule.check(length, f"The rule of an axis of {length} positions", "positions")
        bound *= _axis_bound(rule, length, queries, keys)
    return bound


def end_to_end(share: float, speedup: float) -> float:
    """The speed-up of a model whose attention takes `share` of the time and becomes `speedup` times faster.

    1 / ((1 - share) + share / speedup)

    Raises:
        ValueError: `share` is no share, or `speedup` is not positive.
    """
    if not (0 <= share <= 1 and speedup > 0):
        raise ValueError(f"share must be from 0 to 1 and speedup positive; got {share} and {speedup}.")
    return 1 / ((1 - share) + share / speedup)


def pattern_bound(
    pattern: Pattern, grid: tuple[int, int], query_tile: tuple[int, int], key_tile: tuple[int, int]
) -> float:
    """The bound of a pattern on a grid of (rows, cols); tiles are (rows, cols), too.

    Rules of rows and columns are bounded axis by axis; a disc by the tiles that it touches; positions in raster order
    in tiles of as many tokens. Groups of heads share the machine, so their visits are averaged.
    """
    if pattern.heads:
        bounds = [pattern_bound(group, grid, query_tile, key_tile) for group in pattern.heads]
        return len(bounds) / sum(1 / bound for bound in bounds)
    if pattern.radius is None and isinstance(pattern.rows, Axis) and isinstance(pattern.cols, Axis):
        return tile_bound((pattern.rows, pattern.cols), grid, query_tile, key_tile)
    if pattern.raster:
        query_tile, key_tile = (1, math.prod(query_tile)), (1, math.prod(key_tile))
    visited = visited_tiles(relation_of(pattern, grid), pattern.on(grid), query_tile, key_tile)
    return visited.shape[1] / int(visited.sum(1).max())


@lru_cache(maxsize=4)
def relation_of(pattern: Pattern, grid: tuple[int, int]) -> np.ndarray:
    """`pattern.mask(grid)` as an array that several analyses share; read-only."""
    mask = pattern.mask(grid).numpy()
    mask.setflags(write=False)
    return mask


def visited_tiles(
    mask: np.ndarray, grid: tuple[int, int], query_tile: tuple[int, int], key_tile: tuple[int, int]
) -> np.ndarray:
    """(query tiles, key tiles) bool: whether any query of the one reads any key of the other; mask is (N, N) bool."""
    read = _any_in_tile(mask.reshape(*grid, -1), query_tile)
    return _any_in_tile(read.reshape(*grid, -1), key_tile)


def _any_in_tile(mask: np.ndarray, tile: tuple[int, int]) -> np.ndarray:
    """(rows, cols, M) bool -> (M, tiles) bool: whether any position of a tile is True."""
    rows, cols = (range(0, size, step) for size, step in zip(mask.shape[:2], tile, strict=True))
    mask = np.stack([mask[r : r + tile[0]].any(0) for r in rows])
    mask = np.stack([mask[:, c : c + tile[1]].any(1) for c in cols], axis=1)
    return mask.reshape(-1, mask.shape[-1]).T


def _axis_bound(rule: Axis, size: int, queries: int, keys: int) -> float:
    """Full attention's visits over the pattern's along one axis, both summed over query tiles at the worst tile's."""
    if rule.kernel is None:
        return 1.0
    programs = worst = 0
    for residue in range(min(rule.dilation, size)):
        members = range(residue, size, rule.dilation)
        read = [rule.keys(i, size) for i in members]
        first, last = (np.array([r[end] for r in read]) // rule.dilation for end in (0, -1))
        starts = np.arange(0, len(members), queries)
        begin, end = np.minimum.reduceat(first, starts), np.maximum.reduceat(last, starts) + 1
        worst = max(worst, int((-(-end // keys) - begin // keys).max()))
        programs += len(starts)
    return math.ceil(size / queries) * math.ceil(size / keys) / (programs * worst)
