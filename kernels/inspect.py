"""Look at GPU code without a GPU: what every Triton kernel uses and does, how it is tiled, and its source.

`compiled.py` compiles, `instructions.py` counts, `occupancy.py` and `costs.py` reason from the numbers.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from kernels.compiled import (
    MISSING,
    OPS,
    TARGETS,
    CompiledKernel,
    Compiler,
    compile_kernels,
    cost_row,
    has_triton,
    known_targets,
    numbers_of,
    specs,
)
from kernels.costs import MAP, PATTERNS

__all__ = [
    "MISSING", "OPS", "TARGETS", "CompiledKernel", "Compiler", "TileBoxes", "TilePlan", "compile_kernels", "cost_row",
    "has_triton", "known_targets", "numbers_of", "plans", "python_source", "specs", "tile_boxes",
]  # fmt: skip


@dataclass(frozen=True)
class TilePlan:
    """How attention cuts a pattern on a map into tiles: boxes of (rows, cols) queries and keys, all slots of a tile.

    side: what a tile owns, "query" for the output and the gradient of q, "key" for those of k and v. slots: queries
    times keys of a tile. masked: the share of these pairs that the pattern forbids or that lie outside the map.
    """

    plan: str
    map: tuple[int, int]
    side: str
    queries: tuple[int, int]
    keys: tuple[int, int]
    parts: int
    slots: int
    masked: float


#: The sides of the maps for which plans are shown: the stages of a model for images of 224 pixels.
MAPS = (56, 28, 14)
#: Channels of a head in the models.
HEAD = 32


def plans() -> Iterator[TilePlan]:
    """The tiles of every pattern of the family on representative maps, for both sides, for 16-bit storage."""
    from kernels.attention.gpu_plans import arrange

    for side in MAPS:
        for pattern in _family(side):
            for part, owner in product(pattern.groups, ("query", "key")):
                grid = part.on((side, side))
                rows, cols, masked = arrange(part, grid, grid, owner, HEAD, False).plan
                queries, keys = (rows.queries, cols.queries), (rows.keys, cols.keys)
                slots, parts = queries[0] * queries[1] * keys[0] * keys[1], rows.table.shape[1] * cols.table.shape[1]
                yield TilePlan(part.name, (side, side), owner, queries, keys, parts, slots, masked)


def _family(side: int) -> list[Any]:
    """The patterns of the family, at the sizes of the published models, on a map of side x side."""
    from kernels import attention as a

    return [
        a.swin(7), a.swin(7, 3), a.block(2), a.neighborhood(7), a.neighborhood(7, dilation=2), a.neighborhood(8, 4),
        a.neighborhood(7, causal=True), a.halo(7, 3), a.halo(7, 3, "clamp"), a.grid(7, side), a.cross(7), a.axial(0),
        a.axial(1), a.disc(8), a.power(64, 2, 1), a.full(),
    ]  # fmt: skip


@dataclass(frozen=True)
class TileBoxes:
    """One tile of an attention kernel on its map: the (row, col) where its boxes begin, their sizes, and the step.

    A box has every `step`-th position along each axis. owner: "query" or "key", the side that a program computes.
    """

    pattern: str
    map: tuple[int, int]
    owner: str
    query: tuple[int, int]
    queries: tuple[int, int]
    key: tuple[int, int]
    keys: tuple[int, int]
    step: tuple[int, int]


def tile_boxes(name: str) -> TileBoxes | None:
    """The middle tile of an attention kernel, by its name in `specs`; None where its tiles are not boxes on the map.

    They are not for other operators, for a pattern that counts positions along rows, and where a tile has parts.
    """
    from kernels.attention.gpu_plans import arrange

    kernel, *variant = name.split()
    pattern = PATTERNS.get(" ".join(variant[1:-1]))
    if pattern is None or pattern.raster or kernel == "delta_kernel" or not variant[-1].isdecimal():
        return None
    owner = "key" if kernel == "key_value_kernel" else "query"
    rows, cols, _ = arrange(pattern, MAP, MAP, owner, int(variant[-1]), variant[0] == "fp32").plan
    if rows.table.shape[1] * cols.table.shape[1] > 1:
        return None
    (row, key_row, down), (col, key_col, right) = (
        axis.table[len(axis.table) // 2, 0].tolist() for axis in (rows, cols)
    )
    sizes = (rows.queries, cols.queries), (rows.keys, cols.keys)
    return TileBoxes(pattern.name, MAP, owner, (row, col), sizes[0], (key_row, key_col), sizes[1], (down, right))


def python_source(name: str) -> str:
    """The Python of a kernel, by its name in `specs`, and of the functions of Triton that it calls, callers first."""
    kernel = specs()[numbers_of([name])[0]]["fn"]
    found = [kernel]
    for function in found:  # which grows
        called = inspect.getclosurevars(function.fn).globals.values()
        found += [each for each in called if _compiled_in(each) and each not in found]
    return "\n\n".join(inspect.getsource(function.fn).rstrip() for function in found) + "\n"


def _compiled_in(value: Any) -> bool:
    """Whether this is a function of ours that Triton compiles, or interprets; not one of its own library."""
    function = getattr(value, "fn", None)
    return inspect.isfunction(function) and function.__module__.startswith("kernels.")
