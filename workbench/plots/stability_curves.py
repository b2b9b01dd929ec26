"""The curves of the stability laboratory: gates and growth line by line, norms, gradient and context step by step.

Every line of a figure has its own colour and dashes. A line is also a row of columns, by which a page patches it.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr
from bokeh.models import CustomJSTickFormatter

from .receptive_field_curves import LINES, UNIFORM

Columns = dict[str, np.ndarray]

#: Row-sum errors of 0 have no logarithm; they are drawn this many times below the tolerance.
FLOOR = 16


@dataclass(frozen=True)
class Panel:
    """One figure: its heading, its axes, and the name of each line in the legend."""

    title: str
    x: str
    names: tuple[str, ...]
    log: bool = True


PANELS = {
    "growth": Panel("Growth of h", "line", ("max |h|", "linear bound", "bound, any gates")),
    "sums": Panel("Row sums off 1", "line or steps", ("a line's w", "W", "tolerance")),
    "gates": Panel("Gates", "line", ("smallest", "sum of |gates|", "spectral radius"), log=False),
    "norms": Panel("Norms of W, and gradient", "steps", ("‖W‖∞", "‖W‖₂", "largest dh/dx", "‖dh/dx‖∞")),
    "context": Panel("What W still tells apart", "steps", ("Dobrushin", "effective width", "√(2t/3)")),
}


def panel_data(result: xr.Dataset, panel: str) -> list[Columns]:
    """The columns x, y of every line of a panel, in the order of its names; what has no logarithm is NaN."""
    lines = _DATA[panel](result)
    if PANELS[panel].log:
        return [{"x": x, "y": _positive(y)} for x, y in lines]
    return [{"x": x, "y": np.where(np.isfinite(y), y, np.nan)} for x, y in lines]


def panel_limits(result: xr.Dataset, panel: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """((left, right), (bottom, top)) of a panel: whole decades or quarters, so that it seldom changes."""
    columns = panel_data(result, panel)
    x = np.concatenate([each["x"] for each in columns])
    y = np.concatenate([each["y"] for each in columns])
    y = y[np.isfinite(y)]
    right = float(max(x.max(), 1.0))
    if not PANELS[panel].log:
        low, high = (min(0.0, float(y.min())), max(1.0, float(y.max()))) if y.size else (0.0, 1.0)
        low, high = np.floor(4 * low) / 4, np.ceil(4 * high) / 4
        return (0.0, right), (float(low - 0.05 * (high - low)), float(high + 0.05 * (high - low)))
    if not y.size:
        return (0.0, right), (0.1, 10.0)
    low, high = np.floor(np.log10(y.min())), np.ceil(np.log10(y.max()))
    middle = (low + high) / 2
    low, high = min(low, np.floor(middle - 1)), max(high, np.ceil(middle + 1))
    return (0.0, right), (0.7 * 10.0 ** max(low, -320), min(1.4 * 10.0 ** min(high, 307), 1e308))


def _positive(y: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(y) & (y > 0), y, np.nan)


Lines = list[tuple[np.ndarray, np.ndarray]]


def _growth(result: xr.Dataset) -> Lines:
    line = _line(result)
    general = result["general_bound"].values
    with np.errstate(invalid="ignore"):  # beyond the largest number of the format there is nothing to bound
        general = np.where(general <= result.attrs["largest_finite"], general, np.nan)
    return [(line, result["max_hidden"].values), (line, result["bound"].values), (line, general)]


def _sums(result: xr.Dataset) -> Lines:
    tolerance = result.attrs["tolerance"]
    line, steps = _line(result), result["steps"].values.astype(float)
    ends = np.array([0.0, line[-1]])
    floor = partial(np.maximum, tolerance / FLOOR)
    return [
        (line, floor(result["row_sum_error"].values)),
        (steps, floor(result["accumulated_row_sum_error"].values)),
        (ends, np.full(2, tolerance)),
    ]


def _gates(result: xr.Dataset) -> Lines:
    line, radius = _line(result), result["spectral_radius"].values
    known = np.isfinite(radius)
    radius_at = (line[known], radius[known]) if known.any() else (line[:1], np.full(1, np.nan))
    return [(line, result["min_gate"].values), (line, result["abs_sum"].values), radius_at]


def _norms(result: xr.Dataset) -> Lines:
    steps, distance = (result[name].values.astype(float) for name in ("steps", "distance"))
    return [
        *((steps, result[name].values) for name in ("norm_inf", "norm_2")),
        *((distance, result[name].values) for name in ("gradient", "gradient_norm")),
    ]


def _context(result: xr.Dataset) -> Lines:
    steps = result["steps"].values.astype(float)
    return [
        *((steps, result[name].values) for name in ("dobrushin", "effective_width")),
        (steps, np.sqrt(2 * steps / 3)),
    ]


def _line(result: xr.Dataset) -> np.ndarray:
    return result["line"].values.astype(float)


_DATA = {"growth": _growth, "sums": _sums, "gates": _gates, "norms": _norms, "context": _context}

#: Lines that are there to compare with: dotted grey.
_REFERENCES = ("tolerance", "√(2t/3)")


def curve_figure(result: xr.Dataset, panel: str, height: int = 255) -> hv.Overlay:
    """One panel: an element for each of its lines, in their order."""
    about = PANELS[panel]
    layers = []
    for n, (name, columns) in enumerate(zip(about.names, panel_data(result, panel), strict=True)):
        style = UNIFORM if name in _REFERENCES else LINES[n]
        dash = [round(3 * length) for length in style.dash] or "solid"
        layers.append(
            hv.Curve(columns, "x", "y", label=name).opts(color=style.colour, line_dash=dash, line_width=2, tools=[])
        )
    xlim, ylim = panel_limits(result, panel)
    return hv.Overlay(layers).opts(hv.opts.Curve(logy=about.log, xlim=xlim, ylim=ylim), _frame(about, height))


def _frame(about: Panel, height: int) -> Any:
    return hv.opts.Overlay(
        responsive=True,
        height=height,
        toolbar=None,
        default_tools=[],
        show_grid=True,
        title=about.title,
        xlabel=about.x,
        ylabel="",
        legend_position="bottom",
        legend_cols=2,
        fontsize={"title": "10pt"},
        yformatter=_ticks() if about.log else None,
        hooks=[_small_legend],
    )


def _small_legend(plot: Any, element: Any) -> None:
    """A legend of one or two low rows: the figure is small."""
    for legend in plot.state.legend:
        legend.update(
            label_height=12, glyph_height=12, glyph_width=18, spacing=2, padding=0, margin=2, label_standoff=3,
            background_fill_alpha=0.0, border_line_color=None,
        )  # fmt: skip


def _ticks() -> CustomJSTickFormatter:
    """Short labels on a logarithmic axis of few or many decades; a document needs one of its own."""
    code = "return tick >= 1e-3 && tick < 1e4 ? String(+tick.toPrecision(3)) : tick.toExponential(0)"
    return CustomJSTickFormatter(code=code)
