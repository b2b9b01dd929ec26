"""The fronts on paper and on slides: moments of every direction side by side, with the gates' flow and the weights.

Drawn by matplotlib without its global state, on white, with all lengths in inches and no text under 7 points at the
width of an A4 page.
"""

import textwrap
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .affinity import DIVERGING, SEQUENTIAL
from .directions import (
    MERGED,
    caption,
    chunk_lines,
    colour_range,
    front_boxes,
    outline,
    panels,
    step_at,
    title,
    words,
)
from .directions_gates import arrows
from .receptive_field_paper import png, svg

__all__ = ["png", "sheet", "svg"]

#: Points of the text: names, and notes.
NAME, NOTE = 8.0, 7.0

#: Inches: the sheet's width (A4 less its margins), the space around panels, for row names, the bar, and a line of text.
WIDTH, GAP, LEFT, BAR, LINE = 7.5, 0.07, 0.95, 0.55, 0.13

#: Inches of the lines above the panels, and characters of a line of the note.
HEAD, CHARACTERS = 0.5, 128

#: Colours on white: the query, the cone, the chunks, arrows by the dominant gate.
QUERY, CONE, CHUNK, KINDS = "#007c91", "#1b7837", "#c51b7d", ("#b35806", "#000000", "#2166ac")

#: Places that the front has not reached, and a light version of the heat that stays visible on white.
EMPTY = "#f2f2f2"


def sheet(result: xr.Dataset, frames: tuple[int, ...] | None = None, scale: str = "log", trail: bool = True) -> Figure:
    """Moments of the merged map and of every direction, and the flow of each direction's gates.

    Args:
        result: from `directions`.
        frames: up to 6 moments, or None for 4 from the first to the last.
        scale: "log" or "linear".
        trail: show the lines already passed, too.

    Returns:
        A figure for `png` and `svg`.

    Raises:
        ValueError: no frame, too many, or one that does not exist.
    """
    last = result.sizes["step"] - 1
    chosen = tuple(dict.fromkeys(round(last * i / 3) for i in range(4))) if frames is None else tuple(frames)
    if not 1 <= len(chosen) <= 6 or not all(0 <= frame <= last for frame in chosen):
        raise ValueError(f"A sheet shows one to 6 of the frames 0 to {last}; got {frames}.")
    rows, cols = result.attrs["grid"]
    names = [MERGED, *map(str, result["direction"].values)]
    side = (WIDTH - LEFT - BAR) / (len(chosen) + 1) - GAP
    tall = min(side * rows / cols, 2 * side)
    note = textwrap.wrap(caption(result, scale) + "; " + _words(result), CHARACTERS)
    height = HEAD + len(names) * (tall + GAP) + 0.1 + LINE * len(note) + 0.1
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    limits = colour_range(result, scale)
    heat, norm = _colours(limits, scale)
    figure.text(0.01, 1 - 0.16 / height, title(result), fontsize=NAME + 1, va="center", weight="bold")
    for i, name in enumerate(names):
        bottom = height - HEAD - (i + 1) * (tall + GAP) + GAP
        figure.text(0.01, (bottom + tall / 2) / height, _row_name(result, i), fontsize=NAME, va="center")
        for j in range(len(chosen) + 1):
            box = ((LEFT + j * (side + GAP)) / WIDTH, bottom / height, side / WIDTH, tall / height)
            axes = figure.add_axes(box)
            if j < len(chosen):
                _moment(axes, result, name, i, chosen[j], trail, heat, norm)
            elif i == 0:
                _legend(axes)
            else:
                _flow(axes, result, i - 1)
            if i == 0 and j < len(chosen):
                axes.set_title(f"step {step_at(result, chosen[j])}", fontsize=NAME, pad=3)
    _bar(figure, heat, norm, height, len(names) * (tall + GAP))
    figure.text(0.01, (LINE * len(note) + 0.08) / height, "\n".join(note), fontsize=NOTE, va="top", linespacing=1.25)
    return figure


def _row_name(result: xr.Dataset, row: int) -> str:
    if row == 0:
        return "merged"
    name = words(result["direction"].values[row - 1])
    return f"{name}\nm = {float(result['weight'][row - 1]):.3g}"


def _words(result: xr.Dataset) -> str:
    gain = max(arrows(result, k)[2] for k in range(result.sizes["direction"]))
    return (
        "green: the cone that the gates can reach; pink, dotted: where chunks start; square: the position; arrows: "
        f"where information goes, one line on and across by g0 - g2, drawn up to {gain:.3g} times"
    )


def _colours(limits: tuple[float, float], scale: str) -> tuple[Colormap, Normalize]:
    """The map's colours, and the scale; a sequential map is turned round, so that nothing is as light as the paper."""
    if limits[0] < 0:
        heat = ListedColormap(DIVERGING)
    else:
        steps = LinearSegmentedColormap.from_list("heat", SEQUENTIAL[::-1])(np.linspace(0.06, 1, 256))
        heat = ListedColormap([tuple(c) for c in steps])
    log = scale == "log" and limits[0] > 0
    return heat.with_extremes(bad=EMPTY), LogNorm(*limits, clip=True) if log else Normalize(*limits, clip=True)


def _frame(axes: Axes, result: xr.Dataset) -> None:
    rows, cols = result.attrs["grid"]
    axes.set(xlim=(0, cols), ylim=(-rows, 0), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(linewidth=0.5, color="0.6")


def _moment(
    axes: Axes, result: xr.Dataset, name: str, panel: int, frame: int, trail: bool, heat: Colormap, norm: Any
) -> None:
    """One panel at one moment."""
    rows, cols = result.attrs["grid"]
    values = panels(result, frame, trail)[panel]
    axes.imshow(values, cmap=heat, norm=norm, extent=(0, cols, -rows, 0), interpolation="nearest", aspect="auto")
    _frame(axes, result)
    own = range(result.sizes["direction"]) if name == MERGED else [panel - 1]
    for k in own:
        _lines(axes, outline(result["cone"].values[k]), CONE, 0.6)
        _lines(axes, chunk_lines(result, k), CHUNK, 0.4, "dotted")
        if (box := front_boxes(result, frame)[k]) is not None:
            left, bottom, right, top = box
            axes.add_patch(Rectangle((left, bottom), right - left, top - bottom, fill=False, lw=0.6, ec="black"))
    row, col = result.attrs["position"]
    axes.add_patch(Rectangle((col, -row - 1), 1, 1, fill=False, lw=1.2, ec=QUERY))


def _lines(axes: Axes, segments: np.ndarray, colour: Any, width: float, style: str = "solid") -> None:
    axes.add_collection(
        LineCollection([*segments.reshape(-1, 2, 2)], colors=colour, linewidths=width, linestyles=style)
    )


def _flow(axes: Axes, result: xr.Dataset, direction: int) -> None:
    segments, kind, _ = arrows(result, direction)
    _frame(axes, result)
    _lines(axes, segments, [KINDS[k] for k in kind], 0.7)


def _legend(axes: Axes) -> None:
    """What the colours of the arrows below mean."""
    axes.set_axis_off()
    axes.text(0, 0.92, "flow of the gates;\nlargest gate reads", fontsize=NOTE, va="top", transform=axes.transAxes)
    for i, (colour, word) in enumerate(zip(KINDS, ("index - 1", "the same index", "index + 1"), strict=True)):
        axes.text(0, 0.52 - 0.18 * i, word, fontsize=NOTE, color=colour, va="top", transform=axes.transAxes)


def _bar(figure: Figure, heat: Colormap, norm: Any, height: float, length: float) -> None:
    box = ((WIDTH - BAR + 0.05) / WIDTH, (height - HEAD - length + GAP) / height, 0.1 / WIDTH, (length - GAP) / height)
    bar = figure.colorbar(ScalarMappable(norm, heat), cax=figure.add_axes(box))
    bar.ax.tick_params(labelsize=NOTE, length=2, pad=1)
    bar.outline.set_linewidth(0.5)
