"""The figures of the Kernels page: what kinds of instructions a kernel has on each target, and one of its tiles.

Rows are those of `CompiledKernel.row`; tiles are drawn with x to the right and y minus the row.
"""

from collections.abc import Sequence
from typing import Any

import holoviews as hv
import pandas as pd

from kernels.inspect import TileBoxes
from kernels.instructions import KINDS

from .receptive_field_curves import LINES

#: Short names of the kinds, for the figure's axis and the table.
SHORT = {
    "load_16": "load 16 B", "load_less": "load less", "store_16": "store 16 B", "store_less": "store less",
    "shared": "shared memory", "shuffle": "shuffle", "barrier": "barrier", "tensor": "tensor core", "float": "float",
    "special": "special", "convert": "convert", "integer": "integer", "constant": "constant", "control": "control",
    "spill": "spill", "other": "other",
}  # fmt: skip

#: Pixels of the figure besides its bars, and of one bar of one target and the space after a kind.
AROUND, BAR, SPACE = 70, 7, 8

#: The colours of queries and keys.
QUERY, KEY = "#d55e00", "#0072b2"


def mix_frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A line for each kind that any row has, in the order of `KINDS`, and each target: how many instructions."""
    kinds = [kind for kind in KINDS if any(row["mix"][kind] for row in rows)]
    lines = [(SHORT[kind], row["target"], row["mix"][kind]) for kind in kinds for row in rows]
    return pd.DataFrame(lines, columns=["kind", "target", "instructions"])


def mix_figure(rows: Sequence[dict[str, Any]]) -> hv.Overlay:
    """A horizontal bar for each kind and target, the first kind on top. Elements: the bars of each target."""
    frame = mix_frame(rows)
    targets, kinds = list(dict.fromkeys(frame["target"])), list(dict.fromkeys(frame["kind"]))
    thick = 0.8 / len(targets)
    layers = []
    for n, target in enumerate(targets):
        own = frame[frame["target"] == target]
        tops = [-kinds.index(kind) + 0.4 - n * thick for kind in own["kind"]]
        counts = own["instructions"]
        bars = zip([0] * len(tops), [top - thick for top in tops], counts, tops, own["kind"], counts, strict=True)
        label = target if len(targets) > 1 else ""  # one needs no legend
        layers.append(
            hv.Rectangles(list(bars), ["left", "bottom", "right", "top"], ["kind", "instructions"], label=label).opts(
                color=LINES[n].colour, line_color=None, tools=["hover"], default_tools=[],
                hover_tooltips=[("kind", "@kind"), (target, "@instructions")],
            )
        )  # fmt: skip
    longest = max(1, frame["instructions"].max())
    return hv.Overlay(layers).opts(
        responsive=True, height=AROUND + len(kinds) * (SPACE + BAR * max(2, len(targets))), toolbar=None, ylabel="",
        xlabel="instructions in the code (a loop counts once)", ylim=(0.6 - len(kinds), 0.6), xlim=(0, 1.03 * longest),
        legend_position="top_right", yticks=[(-n, kind) for n, kind in enumerate(kinds)], title="Instruction mix",
        fontsize={"title": "10pt"}, show_grid=False,
    )  # fmt: skip


def tile_figure(tile: TileBoxes) -> hv.Overlay:
    """The map, the box of keys and the box of queries of one tile. Elements: map, keys, queries."""
    rows, cols = tile.map
    boxes = [
        hv.Rectangles([(0, -rows, cols, 0)]).opts(fill_alpha=0, line_color="#7f7f7f", line_width=1),
        hv.Rectangles([_box(tile.key, tile.keys, tile.step)]).opts(color=KEY, fill_alpha=0.35, line_color=KEY),
        hv.Rectangles([_box(tile.query, tile.queries, tile.step)]).opts(
            color=QUERY, fill_alpha=0.25, line_color=QUERY, line_width=3
        ),
    ]
    return hv.Overlay(boxes).opts(
        hv.opts.Overlay(
            responsive=True, data_aspect=1, toolbar=None, xaxis=None, yaxis=None, xlim=(-1, cols + 1),
            ylim=(-rows - 1, 1), title="One tile on the map", fontsize={"title": "10pt"}, show_legend=False,
        ),
        hv.opts.Rectangles(tools=[], default_tools=[]),
    )  # fmt: skip


def _box(first: tuple[int, int], size: tuple[int, int], step: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, bottom, right, top of the positions of a box."""
    (row, col), (rows, cols), (down, right) = first, size, step
    return col, -(row + (rows - 1) * down + 1), col + (cols - 1) * right + 1, -row


def mix_caption(rows: Sequence[dict[str, Any]]) -> str:
    """What is counted, how and for what."""
    return (
        f"{rows[0]['name']}: instructions in the machine code, SASS of NVIDIA and assembly of AMD, without NOP. Counts "
        "are static, so they weigh code that runs once as much as the inner loop. Load and store are those of global "
        "memory; integer includes addresses, moves and predicates."
    )


def tile_caption(tile: TileBoxes) -> str:
    """What the boxes are, in words."""
    step = "" if tile.step == (1, 1) else f", every {tile.step[0]} x {tile.step[1]}-th position"
    return (
        f"{tile.pattern} on {tile.map[0]} x {tile.map[1]}: a tile of {tile.queries[0]} x {tile.queries[1]} queries "
        f"(orange) and the {tile.keys[0]} x {tile.keys[1]} keys (blue) that they read{step}. A program computes one "
        f"chunk of the {'queries' if tile.owner == 'query' else 'keys'} of one tile and head; pairs that the pattern "
        "forbids are masked."
    )
