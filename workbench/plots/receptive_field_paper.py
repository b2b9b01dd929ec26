"""The comparison of receptive fields that a paper prints: a grid of maps with one colour range, and their curves.

Drawn by matplotlib without its global state: every length is set here, in inches, so that a figure is the same on
every machine and fits a column.
"""

import io
import math
import textwrap
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from .affinity import QUERY, SEQUENTIAL
from .receptive_field import CASING, CONTOUR, DECADES, FIELD, colour_range, shares
from .receptive_field_curves import (
    UNIFORM,
    line_style,
    ranked_data,
    ranked_marks,
    square_data,
    square_marks,
)
from .receptive_field_parts import Lines, block_side, cell_box, line_parts, one_unit, picture_size
from .receptive_field_words import names, paper_caption

#: One result, or none where the grid has a gap.
Cell = xr.Dataset | None
Results = Sequence[xr.Dataset] | Sequence[Sequence[Cell]]

#: Points of the text: names of maps, numbers, and the note below.
NAME, NUMBER, NOTE = 7.0, 6.5, 6.0

#: Height of a line of text and width of a character in inches for each point of their size.
LINE, CHARACTER = 1.22 / 72, 0.53 / 72

#: Inches around everything, between maps, inside their borders, and for the colour bar with its numbers.
MARGIN, GAP, INSIDE, BAR = 0.06, 0.12, 0.03, 0.55

#: Inches of the curves' height, for the numbers left of them, and for the numbers and names below them.
CURVES, LEFT, BELOW = 1.35, 0.34, 0.36

#: The least width of a map in inches, and the most rows per column that a map is drawn with.
LEAST, TALLEST = 1.4, 1.5

#: Beyond these many maps their curves cannot be told apart, and are left out.
MOST_CURVES = 8

#: The name of the line of a map that has the same mass on every pixel.
EVEN = "same mass on every pixel"

#: The colour of the hatching where a map is exactly 0; a plain grey would be a value when printed without colours.
EMPTY = "0.75"

HEAT = ListedColormap(SEQUENTIAL)

#: Names of Bokeh's markers -> matplotlib's.
MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "inverted_triangle": "v", "hex": "h"}

#: What the SVG backend reads from the global settings, which are changed for a moment and by one thread at a time.
SVG_SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "receptive field"}
_SETTINGS_LOCK = threading.Lock()


def figure(
    results: Results,
    columns: int | None = None,
    decades: float = DECADES,
    width: float = 7.0,
) -> Figure:
    """Maps with the regions that hold 50 % and 95 % of their mass, one colour bar, and the curves of up to 8 maps.

    Args:
        results: from `receptive_field`, one after the other or as rows, such as [[a1, a2], [b1, b2]]; None in a row
            leaves its place empty.
        columns: maps in a row of results that are not given as rows; None for as many as fit.
        decades: that the logarithmic colour range spans.
        width: of the figure in inches: 3.5 for a column of two, 7 for both.

    Returns:
        A figure for `png` and `svg`.

    Raises:
        ValueError: there is no result, or fewer than one column.
    """
    rows = _rows(results, columns, width)
    shown = [result for row in rows for result in row if result is not None]
    if not shown:
        raise ValueError("A figure of receptive fields needs at least one result; got none.")
    limits = colour_range(shown, decades)
    sheet = _Sheet(rows, names(shown), paper_caption(shown, limits), width)
    for panel in sheet.panels:
        _draw_panel(sheet, panel, limits)
    _draw_bar(sheet, limits)
    if sheet.curves:
        _draw_curves(sheet, shown)
    sheet.text(MARGIN, sheet.height - MARGIN, "\n".join(sheet.note), NOTE, va="bottom")
    return sheet.figure


def png(figure: Figure, dpi: float = 300) -> bytes:
    """The figure as a PNG file, the same bytes for the same figure."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return file.getvalue()


def svg(figure: Figure) -> bytes:
    """The figure as an SVG file, the same bytes for the same figure; its text stays text."""
    file = io.BytesIO()
    with _SETTINGS_LOCK, mpl.rc_context(SVG_SETTINGS):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _rows(results: Results, columns: int | None, width: float) -> list[list[Cell]]:
    """The results as rows of the grid."""
    if any(not isinstance(result, xr.Dataset) for result in results):
        return [list(cast(Sequence[Cell], row)) for row in results]
    flat = list(cast(Sequence[xr.Dataset], results))
    columns = max(1, min(len(flat), int(width / LEAST))) if columns is None else columns
    if columns < 1:
        raise ValueError(f"A figure needs at least one column of maps; got {columns}.")
    return [list(flat[i : i + columns]) for i in range(0, len(flat), columns)]


@dataclass(frozen=True)
class _Panel:
    """A map, its name on lines, and where it lies on the sheet: inches from the left and the top."""

    result: xr.Dataset
    name: list[str]
    left: float
    top: float
    width: float
    height: float


class _Sheet:
    """Where everything lies, in inches from the left and the top, and the matplotlib figure of that size."""

    def __init__(self, rows: list[list[Cell]], known: list[str], caption: str, width: float) -> None:
        self.width = width
        count = max(map(len, rows))
        side = (width - 2 * MARGIN - BAR - GAP * (count - 1)) / count
        self.panels: list[_Panel] = []
        named, top = iter(known), MARGIN
        for row in rows:
            full = [(n, result) for n, result in enumerate(row) if result is not None]
            found = [(n, result, textwrap.wrap(next(named), _fitting(side, NAME))) for n, result in full]
            if not found:
                continue
            top += max(len(name) for _, _, name in found) * NAME * LINE + 2 * INSIDE
            sizes = [picture_size(r) for _, r, _ in found]
            height = side * min(TALLEST, max(rows_ / cols for rows_, cols in sizes))
            self.panels += [_Panel(r, name, MARGIN + n * (side + GAP), top, side, height) for n, r, name in found]
            top += height + 2 * NUMBER * LINE + 2 * INSIDE + GAP
        self.names, self.curves = known, len(known) <= MOST_CURVES
        self.curves_top = top
        self.legend_top = top + CURVES + BELOW
        longest = max(map(len, [*known, EVEN])) + 8  # with the line before it
        self.legend_columns = max(1, min(len(known) + 1, _fitting(width - LEFT, NUMBER) // longest))
        legend_rows = math.ceil((len(known) + 1) / self.legend_columns)
        self.note = textwrap.wrap(caption, _fitting(width - 2 * MARGIN, NOTE))
        note_top = self.legend_top + legend_rows * NUMBER * LINE * 1.1 + GAP if self.curves else top
        self.height = note_top + len(self.note) * NOTE * LINE + MARGIN
        self.figure = Figure(figsize=(width, self.height), facecolor="white")

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes with a frame as thin as all of them."""
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box)
        axes.tick_params(labelsize=NUMBER, width=0.5, length=2, pad=1.5)
        for spine in axes.spines.values():
            spine.set_linewidth(0.5)
        return axes

    def text(self, left: float, top: float, words: str, size: float, **style: Any) -> None:
        self.figure.text(left / self.width, 1 - top / self.height, words, fontsize=size, linespacing=1.2, **style)


def _fitting(width: float, size: float) -> int:
    """Characters of a size in points that fit a width in inches."""
    return max(8, int(width / (size * CHARACTER)))


def _draw_panel(sheet: _Sheet, panel: _Panel, limits: tuple[float, float]) -> None:
    """A map with its lines, its name above and its numbers below."""
    result = one_unit(panel.result)
    rows, cols = picture_size(result)
    axes = sheet.axes(panel.left, panel.top, panel.width, panel.height)
    axes.set(xticks=[], yticks=[], anchor="N")
    axes.patch.set(hatch="//////", edgecolor=EMPTY, linewidth=0, hatch_linewidth=0.4)
    values = shares(result)
    side = block_side((rows, cols))
    axes.imshow(
        np.ma.masked_invalid(values),
        norm=LogNorm(*limits),
        cmap=HEAT,
        extent=(0, values.shape[1] * side, values.shape[0] * side, 0),
        interpolation="nearest",
    )
    axes.set(xlim=(0, cols), ylim=(rows, 0))
    lines = line_parts(result)
    for part, colour, dash in (("field", FIELD, "-"), ("most", CONTOUR, (0, (3, 1.5))), ("half", CONTOUR, "-")):
        _draw_lines(axes, lines[part], colour, dash)
    left, top, right, bottom = cell_box(result)
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=QUERY, linewidth=0.8))
    sheet.text(panel.left, panel.top - 2 * INSIDE, "\n".join(panel.name), NAME, va="baseline")
    sheet.text(panel.left, panel.top + panel.height + INSIDE, "\n".join(measures_in_words(result)), NUMBER, va="top")


def _draw_lines(axes: Axes, lines: Lines, colour: str, dash: Any) -> None:
    """Lines on a darker one, because they cross black, red, yellow and grey."""
    under = LineCollection(lines, colors=CASING, linewidths=1.8, alpha=0.6)
    axes.add_collection(under)
    axes.add_collection(LineCollection(lines, colors=colour, linewidths=0.8, linestyles=[dash]))


def measures_in_words(result: xr.Dataset) -> list[str]:
    """The two numbers under a map: the area that holds half of the mass, and how wide it is."""
    thresholds = result["threshold"].values
    threshold = thresholds[np.abs(thresholds - 0.5).argmin()]
    share = float(result["r"].sel(threshold=threshold))
    area = f"{100 * share:{'.1f' if share >= 0.00995 else '.2g'}} %" if np.isfinite(share) else "not reached"
    major, minor = float(result["sigma_major"]), float(result["sigma_minor"])
    spread = f"{major:.0f} × {minor:.0f} px" if np.isfinite(major) else "not defined"
    return [f"r({100 * threshold:g} %) = {area}", f"σ = {spread}"]


def _draw_bar(sheet: _Sheet, limits: tuple[float, float]) -> None:
    """The colour bar, right of the maps."""
    first, last = sheet.panels[0], sheet.panels[-1]
    height = min(last.top + last.height - first.top, 2.2)
    axes = sheet.axes(sheet.width - MARGIN - BAR + GAP, first.top, 0.09, height)
    bar = sheet.figure.colorbar(ScalarMappable(LogNorm(*limits), HEAT), cax=axes)
    bar.outline.set_linewidth(0.5)
    bar.set_label("share of the mass per pixel", fontsize=NUMBER, labelpad=1)
    axes.tick_params(which="both", labelsize=NUMBER, width=0.5, length=2, pad=1)


def _draw_curves(sheet: _Sheet, results: list[xr.Dataset]) -> None:
    """Both curves side by side with one legend."""
    width = (sheet.width - 2 * MARGIN - LEFT - 3 * GAP) / 2  # with room for half of the last number
    top = sheet.curves_top
    square = sheet.axes(MARGIN + LEFT, top, width, CURVES)
    ranked = sheet.axes(MARGIN + LEFT + width + 2 * GAP, top, width, CURVES)
    for axes, data, marks in ((square, square_data, square_marks), (ranked, ranked_data, ranked_marks)):
        for number, result in enumerate(results):
            _draw_curve(axes, list(data(result).values()), list(marks(result).values()), number)
        axes.set_ylim(0, 102)
        axes.grid(linewidth=0.3, color="0.85")
        axes.set_axisbelow(True)
    even = np.geomspace(0.1, 100, 100)
    style: dict[str, Any] = {"color": UNIFORM.colour, "linewidth": 1, "linestyle": (0, UNIFORM.dash)}
    ranked.plot(even, even, **style)
    aspects = {min(size) / max(size) for size in map(picture_size, results)}
    for aspect in sorted(aspects):
        square.plot(even, aspect * even**2 / 100, **style)
    square.set(xlim=(0, 100))
    ranked.set(xscale="log", xlim=(0.1, 100))
    ranked.tick_params(labelleft=False)
    ranked.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    square.set_ylabel("share of the mass, %", fontsize=NUMBER, labelpad=1)
    square.set_xlabel("side of square, % of shorter side", fontsize=NUMBER, labelpad=1)
    ranked.set_xlabel("highest pixels, % of all", fontsize=NUMBER, labelpad=1)
    _draw_legend(sheet)


def _draw_curve(axes: Axes, data: list[np.ndarray], marks: list[np.ndarray], number: int) -> None:
    style = line_style(number)
    dash = (0, style.dash) if style.dash else "-"
    axes.plot(*data, color=style.colour, linewidth=1.1, linestyle=dash)
    axes.plot(*marks, color=style.colour, linestyle="none", marker=MARKERS[style.marker], markersize=3)


def _draw_legend(sheet: _Sheet) -> None:
    """The names of the lines, below the curves."""
    handles = []
    for number, name in enumerate(sheet.names):
        style = line_style(number)
        look: dict[str, Any] = {"color": style.colour, "linestyle": (0, style.dash) if style.dash else "-"}
        handles.append(Line2D([], [], label=name, marker=MARKERS[style.marker], markersize=3, linewidth=1.1, **look))
    handles.append(Line2D([], [], label=EVEN, color=UNIFORM.colour, linewidth=1, linestyle=(0, UNIFORM.dash)))
    sheet.figure.legend(
        handles=handles,
        ncols=sheet.legend_columns,
        loc="upper left",
        bbox_to_anchor=((MARGIN + LEFT) / sheet.width, 1 - sheet.legend_top / sheet.height),
        fontsize=NUMBER,
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        labelspacing=0.25,
        columnspacing=1.2,
        handlelength=3.6,
    )
