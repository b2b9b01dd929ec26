"""What the numba kernels are told about a pattern: its tiles without what lies outside the map, and the order of work.

`tiles.plan` cuts the map into boxes of slots; here every box is cut down to what exists and is read, boxes that look
alike get one number (their kind), and the boxes of all images are listed kind by kind, so that a kernel can keep the
table of what it adds to the logits while the kind stays the same.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from kernels.vectormath import WIDTH

from .axis import Axis, Rule
from .pattern import Pattern
from .tiles import Cost, Side, Tiles, plan

#: Positions of a tile that are worked on together, side by side in vector registers.
LANES = 64
#: Floats of a table of weights (positions of the other side, lanes), and of a staged table of tokens.
WEIGHTS, STAGED = 4096, 8192
#: Floats that the partial gradients of the bias may take together.
PARTIALS = 2**22


class Layout(NamedTuple):
    """A pattern on a grid, cut into tiles of queries and the keys they read, or into tiles of keys and their readers.

    rows, cols (tiles, parts, 5): the first query, how many queries, the first key, how many keys, and the step between
    neighbours. row_spans, col_spans (size, 2): the first and last key of a query. items (n, 4): image, row tile, column
    tile and kind, kind by kind. query_width, key_width: columns of the maps. row_extent, col_extent: the bias of a pair
    is at (query - key) / step + extent - 1. centre: where it is in a head's flat table if query and key are at one
    place. outgrown: distances may leave the table, and then its border is taken. radius: 0 for none. masked: whether
    some pairs of a tile are not read. lanes, block: the most positions of a tile's own and of its other side that are
    worked on together. chunks: parts of `items` that run at the same time, in each head. apart: no key is in two tiles.
    """

    rows: np.ndarray
    cols: np.ndarray
    row_spans: np.ndarray
    col_spans: np.ndarray
    items: np.ndarray
    query_width: int
    key_width: int
    row_extent: int
    col_extent: int
    centre: int
    outgrown: bool
    radius: int
    masked: bool
    lanes: int
    block: int
    chunks: int
    apart: bool


def cost(queries: int, keys: int) -> float:
    """Cycles for a tile of 32 channels, roughly: two products and an exponential for each vector of lanes and each key.

    Positions beyond the lanes are worked on in another round.
    """
    vectors, rounds = -(-queries // WIDTH), -(-queries // LANES)
    return vectors * keys * 24.0 + queries * keys + rounds * (12.0 * keys + 300) + 16.0 * queries


def _spread(queries: int, keys: int) -> float:
    """The same, but what can be shared among the threads is not kept in one tile."""
    return cost(queries, keys) + (queries > LANES) * 16.0 * queries


#: What tiles are chosen by. Tiles of "both" sides are tiles of queries for patterns whose tiles share no keys.
COSTS: dict[str, tuple[Side, Cost]] = {
    "query": ("query", _spread),
    "key": ("key", lambda queries, keys: _spread(keys, queries)),
    "both": ("query", cost),
}


@lru_cache(maxsize=256)
def layout(
    pattern: Pattern, grid: tuple[int, int], keys: tuple[int, int], batch: int, heads: int, channels: int, tiles: str
) -> Layout:
    """The layout of a pattern without head groups, by tiles of `COSTS`; heads and channels decide how work is cut."""
    side, price = COSTS[tiles]
    planned = plan(pattern, grid, keys, price, side)
    rows, cols = (
        _existing(axis, size, count, side)
        for axis, size, count in zip((planned.rows, planned.cols), grid, keys, strict=True)
    )
    own = 1 if side == "query" else 3
    most = int(rows[:, 0, own].max() * cols[:, 0, own].max())
    lanes = min(LANES, -(-most // WIDTH) * WIDTH)
    other = int(rows[:, :, 4 - own].max() * cols[:, :, 4 - own].max())
    depth = -(-channels // WIDTH) * WIDTH
    block = max(8, min(other, WEIGHTS // lanes, STAGED // depth))
    items = _items(_kinds(rows, planned.rows.spans), _kinds(cols, planned.cols.spans), batch)
    row_extent, col_extent = (_extent(r, size) for r, size in zip((pattern.rows, pattern.cols), grid, strict=True))
    entries = (2 * row_extent - 1) * (2 * col_extent - 1)
    size = min(16, max(1, len(items) * heads // 16))
    chunks = min(-(-len(items) // size), max(1, PARTIALS // (entries * heads)))
    return Layout(
        rows, cols, planned.rows.spans.astype(np.int32), planned.cols.spans.astype(np.int32), items,
        grid[1], keys[1], row_extent, col_extent, entries // 2, grid != keys, pattern.radius or 0,
        not planned.exact or pattern.radius is not None, lanes, block, chunks,
        side == "query" and _apart(rows) and _apart(cols),
    )  # fmt: skip


def _extent(rule: Rule, size: int) -> int:
    """The distance, in steps, that the bias knows along an axis; a PowerAxis has none."""
    return rule.extent(size) if isinstance(rule, Axis) else 1


def _existing(axis: Tiles, size: int, keys: int, side: Side) -> np.ndarray:
    """(tiles, parts, 5): the queries and keys of every tile that lie on the map, and are read."""
    first, count = _clip(axis.table[..., 0], axis.table[..., 2], axis.queries, size)
    key, number = _clip(axis.table[..., 1], axis.table[..., 2], axis.keys, keys)
    found = np.stack([first, count, key, number, axis.table[..., 2]], -1).astype(np.int64)
    if axis.table.shape[1] > 1:
        return found
    for tile in found[:, 0]:
        step = tile[4]
        own, read = (tile[n] + step * np.arange(tile[n + 1]) for n in (0, 2))
        pairs = (axis.spans[own, :1] <= read) & (read <= axis.spans[own, 1:])
        at, used = (0, np.flatnonzero(pairs.any(1))) if side == "key" else (2, np.flatnonzero(pairs.any(0)))
        tile[at], tile[at + 1] = tile[at] + step * used[0], used[-1] - used[0] + 1
    return found


def _clip(start: np.ndarray, step: np.ndarray, slots: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The first of the positions start, start + step, ... on an axis of `size`, and how many there are."""
    skipped = np.maximum(0, -(start // step))
    stop = np.minimum(slots, -((start - size) // step))
    return start + step * skipped, np.maximum(0, stop - skipped)


def _kinds(axis: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """A number for every tile; tiles of one number have the same slots, distances and spans."""
    known: dict[tuple[object, ...], int] = {}
    numbers = []
    for n, parts in enumerate(axis):
        first, count, key, number, step = parts[0]
        own = spans[first + step * np.arange(count)]
        alike = (count, number, (key - first) // step, ((own - key) // step).tobytes(), n if len(parts) > 1 else 0)
        numbers.append(known.setdefault(alike, len(known)))
    return np.array(numbers)


def _items(rows: np.ndarray, cols: np.ndarray, batch: int) -> np.ndarray:
    """(n, 4): image, row tile, column tile and kind of every tile, kind by kind."""
    image, row, col = (a.ravel() for a in np.indices((batch, len(rows), len(cols))))
    kind = rows[row] * (cols.max() + 1) + cols[col]
    return np.stack([image, row, col, kind], 1)[np.argsort(kind, kind="stable")]


def _apart(axis: np.ndarray) -> bool:
    """Whether no key of the axis is in two tiles."""
    if axis.shape[1] > 1:
        return False
    read = np.concatenate([key + step * np.arange(number) for _, _, key, number, step in axis[:, 0]])
    return len(np.unique(read)) == len(read)
