"""The curves of receptive fields: how much of the mass lies within a centred square, or within the highest pixels.

All models are lines of one figure; each has its own colour, dash pattern and marker, so that no line is told by its
colour alone. Everything is in percent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr

from .receptive_field import TOOLS
from .receptive_field_parts import one_unit, picture_size
from .receptive_field_words import names, shared_facts


@dataclass(frozen=True)
class Line:
    """How a line looks: its colour, its dashes (lengths on and off, in line widths; none: solid) and its marker."""

    colour: str
    dash: tuple[float, ...]
    marker: str


#: Told apart with any colour vision and in grey; each colour has at least 3 : 1 contrast on white and on a dark page.
LINES = (
    Line("#0072b2", (), "circle"),
    Line("#d55e00", (5, 2), "square"),
    Line("#009e73", (1.5, 1.5), "triangle"),
    Line("#c46a9b", (6, 2, 1.5, 2), "diamond"),
    Line("#7f7f7f", (9, 3), "inverted_triangle"),
    Line("#a87b00", (3, 1.5, 1, 1.5, 1, 1.5), "hex"),
)


def line_style(number: int) -> Line:
    """The look of line 0, 1, ...: colours and dashes repeat after as many as there are, then with other markers."""
    line, around = LINES[number % len(LINES)], number // len(LINES)
    return replace(line, marker=LINES[(number + around) % len(LINES)].marker)


#: A map that has the same mass on every pixel, for comparison.
UNIFORM = Line("#7f7f7f", (1, 3), "")

#: Pixels of a figure's height without its legend, and of one row of the legend.
HEIGHT, LEGEND_ROW = 360, 26


def square_data(result: xr.Dataset) -> dict[str, np.ndarray]:
    """The columns of a line: the side of a centred square in % of the picture's shorter side, the mass inside in %."""
    result = one_unit(result)
    inside = result["share_square"].dropna("side")
    return {"side": 100 * inside["side"].values / min(picture_size(result)), "mass": 100 * inside.values}


def ranked_data(result: xr.Dataset) -> dict[str, np.ndarray]:
    """The columns of a line: the highest pixels in % of all, from the first 0.1 %, and the mass that they hold in %."""
    held = one_unit(result)["share_ranked"].isel(fraction=slice(1, None))
    return {"pixels": 100 * held["fraction"].values, "mass": 100 * held.values}


def square_marks(result: xr.Dataset) -> dict[str, np.ndarray]:
    """Where the line of the squares reaches each threshold; one that is not reached is left out."""
    result = one_unit(result)
    reached = result["r"].dropna("threshold")
    rows, cols = picture_size(result)
    side = np.sqrt(reached.values * rows * cols)
    return {"side": 100 * side / min(rows, cols), "mass": 100 * reached["threshold"].values}


def ranked_marks(result: xr.Dataset) -> dict[str, np.ndarray]:
    """Where the line of the ranked pixels reaches each threshold, if at 0.1 % of the pixels or more."""
    reached = one_unit(result)["r_ranked"].dropna("threshold")
    reached = reached[reached >= 0.001]
    return {"pixels": 100 * reached.values, "mass": 100 * reached["threshold"].values}


def square_patches(results: Sequence[xr.Dataset]) -> list[dict[str, np.ndarray]]:
    """The columns of the elements of `square_figure` in order, a line and its marks for each result."""
    return [columns for result in results for columns in (square_data(result), square_marks(result))]


def ranked_patches(results: Sequence[xr.Dataset]) -> list[dict[str, np.ndarray]]:
    """The columns of the elements of `ranked_figure` in order, a line and its marks for each result."""
    return [columns for result in results for columns in (ranked_data(result), ranked_marks(result))]


def square_figure(results: Sequence[xr.Dataset]) -> hv.Overlay:
    """For every model the mass within centred squares against their side, elements as in `square_patches`.

    Dotted lines below them: the same mass on every pixel, for each shape of the pictures.
    """
    x = ("side", "side of the centred square, % of the picture's shorter side")
    layers = _lines(names(results), square_patches(results), x)
    side = np.linspace(0, 100, 101)
    for aspect in sorted({min(size) / max(size) for size in map(picture_size, results)}):
        layers.append(_uniform(side, aspect * side**2 / 100, "side"))
    curve = hv.opts.Curve(xlim=(0, 101), ylim=(0, 101), default_tools=TOOLS)
    return hv.Overlay(layers).opts(curve, hv.opts.Points(default_tools=TOOLS), _frame(layers))


def ranked_figure(results: Sequence[xr.Dataset]) -> hv.Overlay:
    """For every model the mass within the highest pixels against their number, on a logarithmic axis.

    Elements as in `ranked_patches`, then a dotted line: the same mass on every pixel.
    """
    layers = _lines(names(results), ranked_patches(results), ("pixels", "highest pixels, % of all pixels"))
    fraction = np.geomspace(0.1, 100, 200)
    layers.append(_uniform(fraction, fraction, "pixels"))
    curve = hv.opts.Curve(xlim=(0.1, 110), ylim=(0, 101), default_tools=TOOLS, logx=True)
    return hv.Overlay(layers).opts(curve, hv.opts.Points(logx=True, default_tools=TOOLS), _frame(layers))


def _lines(labels: list[str], columns: list[dict[str, np.ndarray]], x: tuple[str, str]) -> list[hv.Element]:
    """A line and its marks for each label."""
    layers = []
    y = ("mass", "share of the mass, %")
    for n, name in enumerate(labels):
        style = line_style(n)
        common = {"color": style.colour, "show_legend": True}
        dash = [round(3 * length) for length in style.dash] or "solid"
        layers.append(hv.Curve(columns[2 * n], x, y, label=name).opts(line_dash=dash, line_width=2, **common))
        layers.append(hv.Points(columns[2 * n + 1], [x, y], label=name).opts(marker=style.marker, size=8, **common))
    return layers


def _uniform(x: np.ndarray, mass: np.ndarray, name: str) -> hv.Curve:
    """The line of a map that has the same mass on every pixel."""
    return hv.Curve({name: x, "mass": mass}, name, "mass", label="the same mass on every pixel").opts(
        color=UNIFORM.colour, line_dash=list(UNIFORM.dash), line_width=1.5
    )


def _frame(layers: list[hv.Element]) -> Any:
    """Options of the figure; it is higher the more names there are, because the legend lies below it."""
    rows = len({element.label for element in layers})
    return hv.opts.Overlay(
        responsive=True,
        height=HEIGHT + rows * LEGEND_ROW,
        toolbar="right",
        default_tools=TOOLS,
        active_tools=["box_zoom"],
        backend_opts={"plot.toolbar.logo": None},
        show_grid=True,
        legend_position="bottom",
        legend_cols=1,
        legend_opts={"background_fill_alpha": 0.0, "border_line_color": None, "label_text_font_size": "9pt"},
        fontsize={"title": "10pt"},
    )


def curves_caption(results: Sequence[xr.Dataset]) -> str:
    """What the curves show; what the results have in common is said once, the rest is in their names."""
    marks = ", ".join(f"{100 * t:g}" for t in results[0]["threshold"].values)
    parts = [
        "Share of the effective receptive field's mass",
        "squares are centred on the unit's cell and end at the border of the picture; the ranked pixels lie anywhere",
        f"marks at {marks} % of the mass where they are reached",
        *shared_facts(results),
    ]
    return "; ".join(parts) + "."
