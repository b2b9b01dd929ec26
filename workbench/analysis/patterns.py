"""Which keys an attention pattern reads, how far a stack of its blocks reaches, what it costs: no model is needed."""

import math
import operator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import xarray as xr

from kernels.attention import Axis, Pattern
from kernels.attention.axis import Rule

from . import families
from .families import BLOCKS, FAMILIES, Grid
from .reach import NEVER, Reach, reach
from .spec import record
from .tile_bound import pattern_bound, relation_of, visited_tiles

#: The longest side of a grid: reach holds a number for every pair of positions.
LARGEST = 64

#: Tokens of a tile of FlexAttention's mask.
FLEX_TILE = 64


@dataclass(frozen=True)
class PatternSpec:
    """What `patterns` computes; plain data, which keeps its meaning as JSON or as a link.

    pattern: a family and its arguments as text, such as "swin(window=7, shift=3)"; `list_patterns` names them, and what
    is left out has its default. grid: (rows, cols), sides of 1 to 64. position: the query (row, col). channels: of all
    heads together. value_bytes: bytes of a stored value. query_tile, key_tile: (rows, cols) of a kernel's tiles.
    """

    pattern: str = "swin"
    grid: Grid = (56, 56)
    position: Grid = (0, 0)
    channels: int = 96
    value_bytes: int = 2
    query_tile: Grid = (8, 8)
    key_tile: Grid = (8, 8)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", families.spell(*families.parse(self.pattern)))
        for name, least, most in (("grid", 1, LARGEST), ("position", 0, None), *_TILES):
            object.__setattr__(self, name, _pair(name, getattr(self, name), least, most))
        for name in ("channels", "value_bytes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}.")
        if not all(p < size for p, size in zip(self.position, self.grid, strict=True)):
            raise ValueError(
                f"position must be a (row, col) on the grid of {self.grid[0]} rows and {self.grid[1]} columns; "
                f"got {self.position}."
            )


_TILES = (("query_tile", 1, None), ("key_tile", 1, None))


def list_patterns() -> dict[str, str]:
    """The families of patterns and their arguments with defaults: name -> text that a PatternSpec takes."""
    return {name: families.spell(name, {}) for name in FAMILIES}


def patterns(spec: PatternSpec) -> xr.Dataset:
    """The keys of one query, the reach of a stack of blocks, and the cost of each block of a published pattern.

    A family is a cycle of blocks: Swin's plain and shifted windows, DiNAT's near and dilated neighbourhoods, MaxViT's
    block and grid. Block n of a stack has pattern n of the cycle, and so on again; its query p depends on position s
    after n blocks iff a path of n reads leads from p to s, or fewer (a residual connection keeps what was reached).

        flops = 4 pairs channels,    bytes = 4 N channels value_bytes  (q, k, v read and the output written once)

    Pairs are those of one head; where groups of heads have patterns of their own, their mean.

    Args:
        spec: the pattern, the grid, the query, and what the costs assume.

    Returns:
        For every block of the cycle (dimension "block", coordinate: the pattern's name):
        keys (block, row, col) bool: what the query reads, with any head;
        counts (block, row, col): keys of every query; window (block, row, col, side): the first row, last row, first
        column and last column that every query reads;
        pairs, computed, masked (block): pairs read, pairs that the usual implementation computes, and the share of
        them that it masks; flops, bytes, intensity (block), and full_flops, full_bytes for full attention;
        tile_bound (block): see `pattern_bound`.
        For the stack: blocks (row, col) float: the smallest number of blocks after which the query depends on each
        position, 0 for itself, NaN for never; reached (after): the share of all pairs of positions that are connected
        after 0, 1, ... blocks; until_global: blocks until every query depends on every key, NaN for never;
        until_query: the same for the query alone. attrs hold the Spec.

    Raises:
        ValueError: a pattern that does not exist or is not defined on the grid, or a number out of range.
    """
    facts = _facts(spec.pattern, spec.grid)
    bounds = _bounds(spec.pattern, spec.grid, spec.query_tile, spec.key_tile)
    family, _ = families.parse(spec.pattern)
    blocks = facts.reach.of(spec.position)
    cells = spec.grid[0] * spec.grid[1]
    bytes_ = 4 * cells * spec.channels * spec.value_bytes
    flops = 4 * facts.pairs * spec.channels
    attrs = record("patterns", spec, {"family": family, "label": FAMILIES[family].label})
    attrs |= {"usual": FAMILIES[family].usual[0], "position": spec.position, "grid": spec.grid}
    return xr.Dataset(
        {
            "keys": (("block", "row", "col"), _keys(facts.cycle, spec.position, spec.grid)),
            "counts": (("block", "row", "col"), facts.counts.copy()),
            "window": (("block", "row", "col", "side"), facts.window.copy()),
            "blocks": (("row", "col"), _numbers(blocks)),
            "reached": (("after",), facts.reach.shares.copy()),
            "until_global": _numbers(facts.reach.until_global),
            "until_query": _numbers(blocks.max()),
            "pairs": (("block",), facts.pairs.copy()),
            "computed": (("block",), facts.computed.copy()),
            "masked": (("block",), 1 - facts.pairs / facts.computed),
            "flops": (("block",), flops),
            "bytes": (("block",), np.full(len(flops), bytes_)),
            "intensity": (("block",), flops / bytes_),
            "full_flops": 4 * cells * cells * spec.channels,
            "full_bytes": bytes_,
            "tile_bound": (("block",), np.array(bounds)),
        },
        coords={"block": [p.name for p in facts.cycle], "side": ["first_row", "last_row", "first_col", "last_col"]},
        attrs=attrs,
    )


def relation(spec: PatternSpec) -> xr.DataArray:
    """Who reaches whom: (query, key) uint8, positions row by row, the smallest number of blocks, 255 for never.

    A query reads, in the first block of the cycle, the keys at 1 and itself.
    """
    return xr.DataArray(_facts(spec.pattern, spec.grid).reach.matrix().copy(), dims=("query", "key"))


class _Facts(NamedTuple):
    """What does not depend on the query."""

    cycle: tuple[Pattern, ...]
    reach: Reach
    counts: np.ndarray
    window: np.ndarray
    pairs: np.ndarray
    computed: np.ndarray


@lru_cache(maxsize=6)
def _facts(pattern: str, grid: Grid) -> _Facts:
    cycle = families.cycle(pattern, grid)
    usual = FAMILIES[families.parse(pattern)[0]].usual[1]
    masks = [relation_of(p, grid) for p in cycle]
    counts = np.stack([mask.sum(1).reshape(grid) for mask in masks])
    window = np.stack([_window(mask, grid) for mask in masks])
    split = [
        [int(group.count(grid).sum()) for group in p.heads] or [int(n.sum())]
        for p, n in zip(cycle, counts, strict=True)
    ]
    pairs = np.array([sum(each) / len(each) for each in split])
    computed = np.array([_computed(p, mask, grid, usual) for p, mask in zip(cycle, masks, strict=True)])
    for array in (counts, window, pairs, computed):
        array.setflags(write=False)
    return _Facts(cycle, reach(cycle, grid, masks), counts, window, pairs, computed)


@lru_cache(maxsize=64)
def _bounds(pattern: str, grid: Grid, query_tile: Grid, key_tile: Grid) -> tuple[float, ...]:
    return tuple(pattern_bound(p, grid, query_tile, key_tile) for p in families.cycle(pattern, grid))


def _keys(cycle: tuple[Pattern, ...], position: Grid, grid: Grid) -> np.ndarray:
    """(block, row, col) bool: what the query at `position` reads."""
    keys = np.zeros((len(cycle), *grid), bool)
    for own, pattern in zip(keys, cycle, strict=True):
        rows, cols = zip(*pattern.keys(position, grid), strict=True)
        own[list(rows), list(cols)] = True
    return keys


def _window(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """(row, col, 4): the first row, last row, first column and last column that every query reads."""
    reads = mask.reshape(-1, *grid)
    edges = []
    for axis, size in enumerate(grid):
        lines = np.asarray(reads.any(2 - axis))
        edges += [lines.argmax(1), size - 1 - lines[:, ::-1].argmax(1)]
    return np.stack(edges, axis=-1).astype(np.int16).reshape(*grid, 4)


def _computed(pattern: Pattern, mask: np.ndarray, grid: Grid, usual: str) -> float:
    """Pairs that the usual implementation computes, masked ones included; the mean over groups of heads."""
    if usual == BLOCKS:
        found = [
            math.prod(_in_blocks(r, n) for r, n in zip((p.rows, p.cols), grid, strict=True)) for p in pattern.groups
        ]
        return sum(found) / len(found)
    tile = 1, FLEX_TILE
    return int(visited_tiles(mask, (1, len(mask)), tile, tile).sum()) * FLEX_TILE**2


def _in_blocks(rule: Rule, size: int) -> int:
    """Pairs along an axis that is cut into blocks of queries with a window each, both of full size at the border."""
    assert isinstance(rule, Axis)
    if rule.kernel is None:
        return size * size
    members = [len(range(g, size, rule.dilation)) for g in range(min(rule.dilation, size))]
    return sum(math.ceil(n / rule.stride) * rule.stride * rule.kernel for n in members)


def _numbers(blocks: np.ndarray | int) -> np.ndarray:
    """Numbers of blocks as float, NaN for never."""
    return np.where(np.equal(blocks, NEVER), np.nan, blocks).astype(np.float32)


def _pair(name: str, value: object, least: int, most: int | None) -> Grid:
    allowed = f"at least {least}" if most is None else f"from {least} to {most}"
    try:
        rows, cols = (operator.index(v) for v in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        rows = cols = least - 1
    if min(rows, cols) < least or (most is not None and max(rows, cols) > most):
        raise ValueError(f"{name} must be a (rows, cols) pair of whole numbers {allowed}; got {value!r}.")
    return rows, cols
