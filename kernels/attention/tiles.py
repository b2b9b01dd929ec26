"""A pattern as the kernels read it: tiles of queries with the keys they read, and tiles of keys with their readers.

Both engines work tile by tile. A tile is a box of query slots and a box of key slots on the map, one axis of which is a
row of a table here. Slots outside the map are empty; a pair of slots that the pattern does not allow is masked by
comparing the key with the first and last key of the query (`Side.spans`), so no mask is ever stored. `plan` chooses how
many cells a tile takes, so that little of the work is masked.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from .axis import Axis, PowerAxis, Rule
from .pattern import Pattern

#: What a tile costs, given its query slots and key slots; only ratios count.
Cost = Callable[[int, int], float]
Side = Literal["query", "key"]

#: Tiles of more slots than this along one axis are not tried.
LONGEST = 64


class Tiles(NamedTuple):
    """The tiles of one axis.

    queries, keys: slots of a tile, in each of its parts. table (tiles, parts, 3) int32: the positions of query slot 0
    and key slot 0, and the step from a slot to the next. Parts belong together: a query tile reads all its parts, a key
    tile is read from all of them; only PowerAttention has more than one, and an empty part lies outside the map.
    spans (size, 2) int32: the first and last key of every query. exact: every query of a tile reads all its keys that
    exist, so nothing is to be masked.
    """

    queries: int
    keys: int
    table: np.ndarray
    spans: np.ndarray
    exact: bool


class Plan(NamedTuple):
    """The tiles of both axes of a pattern on a grid; masked: the share of computed pairs that the pattern forbids."""

    rows: Tiles
    cols: Tiles
    masked: float

    @property
    def exact(self) -> bool:
        return self.rows.exact and self.cols.exact


def plan(pattern: Pattern, grid: tuple[int, int], keys: tuple[int, int], cost: Cost, side: Side = "query") -> Plan:
    """The cheapest tiles for a pattern without head groups.

    Args:
        pattern: one pattern, not split over heads.
        grid: (rows, cols) of the queries, as `Pattern.on` gives them.
        keys: (rows, cols) of the keys; other than `grid` only where the pattern reads the whole map.
        cost: what one tile costs, given its query and key slots.
        side: "query" for tiles of queries with all their keys, "key" for tiles of keys with all their readers.
    """
    best: tuple[float, int] | None = None
    chosen: tuple[Tiles, Tiles] | None = None
    for row_length in _lengths(pattern.rows, (grid[0], keys[0])[side == "key"]):
        rows = tiles(pattern.rows, grid[0], keys[0], row_length, side)
        for col_length in _lengths(pattern.cols, (grid[1], keys[1])[side == "key"]):
            cols = tiles(pattern.cols, grid[1], keys[1], col_length, side)
            boxes = len(rows.table) * len(cols.table)
            work = boxes * cols.table.shape[1] * cost(rows.queries * cols.queries, rows.keys * cols.keys)
            if best is None or (work, boxes) < best:
                best, chosen = (work, boxes), (rows, cols)
    assert chosen is not None
    return Plan(*chosen, masked_share(pattern, grid, keys, *chosen))


def masked_share(pattern: Pattern, grid: tuple[int, int], keys: tuple[int, int], rows: Tiles, cols: Tiles) -> float:
    """The share of the pairs in the tiles' boxes that the pattern forbids or that lie outside the map."""
    read = grid[0] * grid[1] * keys[0] * keys[1] if pattern.whole else int(_unrastered(pattern).count(grid).sum())
    computed = 1
    for axis in (rows, cols):
        computed *= axis.table.shape[0] * axis.table.shape[1] * axis.queries * axis.keys
    return 1 - read / computed


def _unrastered(pattern: Pattern) -> Pattern:
    """The same rules on the grid as they see it."""
    return Pattern(pattern.rows, pattern.cols, pattern.name, pattern.radius) if pattern.raster else pattern


@lru_cache(maxsize=4096)
def tiles(rule: Rule, size: int, keys: int, length: int, side: Side) -> Tiles:
    """The tiles of an axis of `size` queries and `keys` keys, each of up to `length` positions, but at least a cell."""
    if isinstance(rule, PowerAxis):
        made = _power(rule, size, side)
    elif rule.kernel is None:
        made = _whole(size, keys, length, side)
    else:
        made = _cells(rule, size, length, side)
    made.table.setflags(write=False)
    made.spans.setflags(write=False)
    return made


def _lengths(rule: Rule, size: int) -> list[int]:
    """The lengths of tiles that are worth trying."""
    if isinstance(rule, PowerAxis):
        return [rule.block]
    longest = min(LONGEST, size)
    if rule.kernel is None:
        return sorted({min(2**n, longest) for n in range(LONGEST.bit_length())})
    return [rule.stride * n for n in range(1, -(-longest // rule.stride) + 1)]


def _whole(size: int, keys: int, length: int, side: Side) -> Tiles:
    """Every query reads every key: the side is cut into tiles, the other side is taken as a whole."""
    starts = np.arange(0, size if side == "query" else keys, length, dtype=np.int32)
    zeros = np.zeros_like(starts)
    both = (starts, zeros) if side == "query" else (zeros, starts)
    table = np.stack([*both, np.ones_like(starts)], axis=1)[:, None]
    spans = np.tile(np.array([0, keys - 1], np.int32), (size, 1))
    return Tiles(length if side == "query" else size, keys if side == "query" else length, table, spans, True)


def _power(rule: PowerAxis, size: int, side: Side) -> Tiles:
    """A tile is a block; its parts are the blocks it reads, or the blocks that read it."""
    count = -(-size // rule.block)
    linked: list[list[int]] = [rule.blocks(b) for b in range(count)]
    if side == "key":
        linked = [[q for q in range(count) if b in linked[q]] for b in range(count)]
    parts = max(map(len, linked))
    table = np.full((count, parts, 3), size, np.int32)  # a part that starts behind the map is empty
    table[:, :, 2] = 1
    own, other = (0, 1) if side == "query" else (1, 0)
    for b, others in enumerate(linked):
        table[b, :, own] = b * rule.block
        table[b, : len(others), other] = np.array(others) * rule.block
    slots = min(rule.block, size)
    return Tiles(slots, slots, table, rule.spans(size), False)


def _cells(rule: Axis, size: int, length: int, side: Side) -> Tiles:
    """Tiles of whole cells, and what lies in reach of them."""
    spans = rule.spans(size)
    span = max(1, length // rule.stride) * rule.stride
    table, reach = [], 1
    for residue in range(min(rule.dilation, size)):
        members = np.arange(residue, size, rule.dilation)
        start = rule.offset % rule.stride
        for first in range(start - rule.stride if start else 0, len(members), span):
            own = members[max(first, 0) : first + span]
            if side == "query":
                begin, end = rule.segment(int(own[0]), size).first, int(spans[own, 1].max())
            else:
                readers = members[(spans[members, 0] <= own[-1]) & (spans[members, 1] >= own[0])]
                begin, end = int(readers[0]), int(readers[-1])
                if first < 0 and _apart(rule):
                    begin = residue + rule.dilation * first  # as the keys: both sides have the same slots
            reach = max(reach, (end - begin) // rule.dilation + 1)
            place = residue + rule.dilation * first
            table.append((place, begin, rule.dilation) if side == "query" else (begin, place, rule.dilation))
    listed = np.array(table, np.int32)[:, None]
    queries, keys = (span, reach) if side == "query" else (reach, span)
    return Tiles(queries, keys, listed, spans, _is_exact(listed, queries, keys, spans, size))


def _apart(rule: Axis) -> bool:
    """Whether cells share no keys: each is a window of its own."""
    return rule.border == "crop" and rule.kernel == rule.stride and not rule.causal


def _is_exact(table: np.ndarray, queries: int, keys: int, spans: np.ndarray, size: int) -> bool:
    """Whether every query of every tile reads all the keys of it that exist."""
    query, key, step = (table[:, 0, [i]] for i in range(3))
    place, at = query + step * np.arange(queries), key + step * np.arange(keys)
    exists = (place >= 0) & (place < size)
    first, last = (spans[np.clip(place, 0, size - 1), i] for i in range(2))
    inside = (at >= 0) & (at < size)
    least = np.where(inside, at, size).min(1, keepdims=True)
    most = np.where(inside, at, -1).max(1, keepdims=True)
    return bool(((first <= least) & (last >= most) | ~exists).all())
