"""How the Triton kernels cut a pattern into tiles, and with which compile-time arguments they treat one.

The costs are counts of machine work and were not fitted to a measurement: a pair of padded slots is one unit.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .axis import Axis, Rule
from .pattern import Pattern
from .tiles import Plan, Side, Tiles, plan

#: What starting a program, and loading a token of the side that is looped over, cost in pairs of slots.
PROGRAM_COST, QUERY_COST, KEY_COST = 1500, 64, 32
#: What a step of the inner loop costs, in slots of the side that is looped over.
STEP_COST = 16


class Blocks(NamedTuple):
    """Slots of a tile that a program treats at a time, powers of two, and what a tile then costs."""

    cost: int
    queries: int
    keys: int


class Group(NamedTuple):
    """Tiles of an axis, next to each other in its table, whose query and key slots are `offset` steps apart."""

    offset: int
    start: int
    tiles: int


class Arrangement(NamedTuple):
    """What the kernels need to know of a pattern on a grid.

    tables: those of the axes, for a kernel. groups: of tiles, for the bias. apart: every tile fits one block and no key
    belongs to two, so that a window is a problem of its own.
    """

    plan: Plan
    constants: dict[str, int | bool]
    tables: tuple[np.ndarray, np.ndarray]
    groups: tuple[list[Group], list[Group]]
    apart: bool


def most_slots(channels: int, single: bool, loops: bool) -> tuple[int, int]:
    """The most slots at a time, of a program's own side and of the other one, that spill no registers on sm_90.

    single: float32 storage. loops: the other side takes several steps; where it takes one, the compiler has a straight
    line and room for more.
    """
    block = block_of(channels)
    if single:
        return (64 if block <= 32 else 32), (32 if block <= 64 else 16)
    return 64, 32 if loops else 64


def next_power_of_2(n: int) -> int:
    """The least power of two that is at least n, for n from 1; plans are made where there is no Triton, too."""
    return 1 << (n - 1).bit_length()


def block_of(channels: int) -> int:
    """Channels of a tile: a power of two that a matrix unit takes."""
    return max(16, next_power_of_2(channels))


@lru_cache(maxsize=4096)
def blocks_of(queries: int, keys: int, parts: int, side: Side, channels: int, single: bool) -> Blocks:
    """The cheapest blocks for a tile of so many slots and parts; `side` is cut into programs, the other looped over."""
    own, other = (queries, keys) if side == "query" else (keys, queries)
    most_own, most_other = most_slots(channels, single, loops=parts > 1 or other > 64)
    load = other * (KEY_COST if side == "query" else QUERY_COST)
    found = []
    for own_block in _powers(own, most_own):
        for other_block in _powers(other, most_other):
            steps = -(-other // other_block)
            program = PROGRAM_COST + parts * (load + own_block * steps * (other_block + STEP_COST))
            pair = (own_block, other_block) if side == "query" else (other_block, own_block)
            found.append(Blocks(-(-own // own_block) * program, *pair))
    return min(found, key=lambda blocks: (blocks.cost, -blocks.queries, -blocks.keys))


def _powers(slots: int, most: int) -> list[int]:
    """The sizes of blocks to choose from: no larger than the slots need."""
    largest = min(most, max(16, next_power_of_2(slots)))
    return [2**n for n in range(4, largest.bit_length())]


@lru_cache(maxsize=1024)
def arrange(
    pattern: Pattern, grid: tuple[int, int], keys: tuple[int, int], side: Side, channels: int, single: bool
) -> Arrangement:
    """The cheapest tiles and blocks of a pattern on a grid.

    Args:
        pattern: without head groups; grid and keys are those its rules see.
        side: "query" for tiles of queries with all their keys, "key" for tiles of keys with all their readers.
        channels: of a head.
        single: float32 storage, which leaves less room for blocks.
    """

    def cost(queries: int, keys: int) -> int:
        return blocks_of(queries, keys, 1, side, channels, single).cost

    chosen = plan(pattern, grid, keys, cost, side)
    rows, cols = chosen.rows, chosen.cols
    queries, slots = rows.queries * cols.queries, rows.keys * cols.keys
    parts = rows.table.shape[1] * cols.table.shape[1]
    blocks = blocks_of(queries, slots, parts, side, channels, single)
    table_rows, table_cols = (_entries(rule, n) for rule, n in zip((pattern.rows, pattern.cols), grid, strict=True))
    (row_table, row_groups), (col_table, col_groups) = _grouped(rows), _grouped(cols)
    constants = {
        "QUERIES": queries,
        "QUERY_COLS": cols.queries,
        "KEYS": slots,
        "KEY_COLS": cols.keys,
        "ROW_PARTS": row_table.shape[1],
        "COL_PARTS": col_table.shape[1],
        "ROWS_EXACT": rows.exact,
        "COLS_EXACT": cols.exact,
        "RADIUS": pattern.radius or 0,
        "TABLE": table_cols,
        "CENTRE": table_rows // 2 * table_cols + table_cols // 2,
        "D": channels,
        "BLOCK_D": block_of(channels),
        "BLOCK_Q": blocks.queries,
        "BLOCK_K": blocks.keys,
    }
    fits = queries <= blocks.queries and slots <= blocks.keys and block_of(channels) <= 32
    apart = fits and not pattern.radius and _covers_once(rows, keys[0]) and _covers_once(cols, keys[1])
    return Arrangement(chosen, constants, (row_table, col_table), (row_groups, col_groups), apart)


def _entries(rule: Rule, size: int) -> int:
    """Entries of the bias table along an axis; 1 where there is none."""
    return 2 * rule.extent(size) - 1 if isinstance(rule, Axis) else 1


def _grouped(tiles: Tiles) -> tuple[np.ndarray, list[Group]]:
    """The table sorted by the distance of query and key slots, with a power of two of parts, and its groups."""
    offsets = (tiles.table[:, 0, 0] - tiles.table[:, 0, 1]) // tiles.table[:, 0, 2]
    order = np.argsort(offsets, kind="stable")
    distinct, starts, counts = np.unique(offsets[order], return_index=True, return_counts=True)
    groups = zip(distinct.tolist(), starts.tolist(), counts.tolist(), strict=True)
    parts = tiles.table.shape[1]
    more = next_power_of_2(parts) - parts
    outside = np.iinfo(np.int32).max
    table = np.pad(tiles.table[order], ((0, 0), (0, more), (0, 0)), constant_values=outside)
    return table, [Group(*group) for group in groups]


def _covers_once(tiles: Tiles, size: int) -> bool:
    """Whether the tiles of an axis are exact, have one offset, and every key lies in exactly one of them."""
    if not tiles.exact or tiles.table.shape[1] > 1 or len(_grouped(tiles)[1]) > 1:
        return False
    _, first, step = tiles.table[:, 0].T
    places = (first[:, None] + step[:, None] * np.arange(tiles.keys)).ravel()
    inside = np.sort(places[(places >= 0) & (places < size)])
    return np.array_equal(inside, np.arange(size))
