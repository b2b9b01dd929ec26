"""Time against positions as a PNG file: the lines of the page and, below them, on what each was measured."""

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from .latency import (
    DASHES,
    GUIDE_COLOUR,
    GUIDES,
    Recording,
    axis_limits,
    caption,
    elements,
    points,
    sizes_of,
    style_of,
    ticks,
    time_in_words,
)

#: Names of Bokeh's markers -> matplotlib's.
MARKERS = {
    "circle": "o", "square": "s", "triangle": "^", "diamond": "D", "inverted_triangle": "v", "hex": "h", "star": "*",
    "plus": "P", "square_pin": "p",
}  # fmt: skip

#: Inches, and characters of a line of the note below.
WIDTH, HEIGHT, NOTE_LINE, ACROSS = 9.0, 5.2, 0.13, 205


def png(
    names: Sequence[str], sweep: xr.Dataset | None, recordings: Sequence[Recording] = (), floors: bool = False
) -> bytes:
    """The figure of `latency_figure` with its caption, 200 dots an inch."""
    note = textwrap.wrap(caption(sweep, recordings, floors), ACROSS)
    height = HEIGHT + NOTE_LINE * len(note)
    figure = Figure((WIDTH, height), dpi=200)
    axes = figure.add_axes((0.1, 1 - 4.75 / height, 0.65, 4.6 / height))
    _draw(axes, names, sweep, recordings, floors)
    figure.text(0.01, 0.05 / height, "\n".join(note), fontsize=6, va="bottom", linespacing=1.25)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _draw(
    axes: Axes, names: Sequence[str], sweep: xr.Dataset | None, recordings: Sequence[Recording], floors: bool
) -> None:
    limits = axis_limits(names, sweep, recordings, floors)
    axes.set(xscale="log", yscale="log", xlim=limits[0], ylim=limits[1])
    axes.set(xlabel="positions (of a model's image: pixels)", ylabel="time of one run")
    places, labels = zip(*ticks(sizes_of(names, sweep, recordings)), strict=True)
    axes.set_xticks(places, labels)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda seconds, place: time_in_words(seconds)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(linewidth=0.3, color="0.85")
    handles = _draw_guides(axes, elements(names, sweep, recordings, floors))
    for name in names:
        style, columns = style_of(name, names), points(sweep, name)
        x, marker, colour = columns["positions"], MARKERS[style.marker], style.colour
        axes.fill_between(x, columns["low"], columns["high"], color=colour, alpha=0.13, linewidth=0)
        axes.plot(x, columns["seconds"], color=colour, linewidth=1.4)
        _draw_marks(axes, columns, marker=marker, color=colour, markersize=5)
        if floors:
            axes.plot(x, columns["least"], color=colour, linewidth=0.8, linestyle=":")
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=5, linewidth=1.4, label=name))
    for n, recording in enumerate(recordings):
        dash: Any = (0, tuple(length / 2 for length in DASHES[n % len(DASHES)]))
        for name in names:
            style, columns = style_of(name, names), points(recording.sweep, name)
            axes.plot(columns["positions"], columns["seconds"], color=style.colour, linewidth=1.1, linestyle=dash)
            _draw_marks(axes, columns, marker=MARKERS[style.marker], color=style.colour, markersize=3.5)
        handles.append(Line2D([], [], color=GUIDE_COLOUR, linestyle=dash, linewidth=1.1, label=recording.label))
    legend: Any = {"fontsize": 7, "loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "frameon": False}
    axes.legend(handles=handles, **legend)


def _draw_guides(axes: Axes, parts: dict[str, Any]) -> list[Line2D]:
    handles = []
    for guide, power in GUIDES.items():
        columns = parts[f"guide {guide}"]
        look: Any = {"color": GUIDE_COLOUR, "linewidth": 1, "linestyle": (0, (1, 3 * power))}
        axes.plot(columns["positions"], columns["seconds"], **look)
        handles += axes.plot([], [], label=guide, **look)
    return handles


def _draw_marks(axes: Axes, columns: dict[str, Any], **look: Any) -> None:
    """Marks, hollow where they are noisy."""
    noisy = columns["noisy"] == 1
    for which, face in ((noisy, "none"), (~noisy, look["color"])):
        axes.plot(columns["positions"][which], columns["seconds"][which], linestyle="", markerfacecolor=face, **look)
