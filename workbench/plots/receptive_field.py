"""The map of an effective receptive field over the picture.

A figure is built once; `patches` then gives the columns of all Bokeh sources that a new result changes. Plot
coordinates: x runs right and y is minus the row, in pixels of the picture, so row 0 is on top.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr
from bokeh.models import CustomJSHover, CustomJSTickFormatter, DataRange1d

from .affinity import FRAME, PADDING, QUERY, SEQUENTIAL
from .receptive_field_parts import (
    Lines,
    block_areas,
    block_means,
    block_side,
    cell_box,
    centre,
    contour,
    held_by_rank,
    labels,
    line_parts,
    one_unit,
    picture_size,
)
from .receptive_field_words import caption, names, numbers, title

__all__ = [
    "DECADES", "PARTS", "caption", "colour_range", "contour_data", "map_data", "map_figure", "names", "numbers",
    "one_unit", "patches", "title",
]  # fmt: skip

#: Decades that the logarithmic colour range spans below its top.
DECADES = 4

#: Colours of lines. Each lies on a darker one, because it crosses black, red, yellow, grey and photographs.
CONTOUR, FIELD, CASING = "white", "#c9b3ff", "black"
UNDER = {"line_color": CASING, "line_width": 3.5, "alpha": 0.6}

#: The parts of a map figure, in the order of its elements.
PARTS = {
    name: index
    for index, name in enumerate(
        ("picture", "map", "casing", "field", "statistics", "most", "half", "axes", "cell", "centre", "names")
    )
}

Columns = dict[str, Any]


def shares(result: xr.Dataset) -> np.ndarray:
    """The map on the screen's blocks as the share of the mass per pixel; NaN where it is exactly 0."""
    values = one_unit(result)["map"].values
    means = block_means(values, block_side(values.shape))
    return np.where(means == 0, np.nan, means)


def colour_range(results: Sequence[xr.Dataset], decades: float = DECADES) -> tuple[float, float]:
    """One range for the maps of all results: from their highest value `decades` down."""
    tops = [float(np.nanmax(values)) for r in results if np.isfinite(values := shares(r)).any()]
    top = max(tops, default=1.0)
    return top / 10**decades, top


def map_data(result: xr.Dataset) -> Columns:
    """The columns of the map: the shares, and what is read under the pointer.

    image: NaN where exactly 0, which is not drawn; share: 0 there; held: the mass of all blocks as high or higher.
    """
    values, side = shares(result), block_side(picture_size(result))
    share = np.nan_to_num(values)
    held = held_by_rank(share, block_areas(picture_size(result), side))
    columns = {"image": values, "share": share, "held": held}
    return {name: [np.flipud(column).astype(np.float32)] for name, column in columns.items()}


def contour_data(result: xr.Dataset, held: float) -> Columns:
    """The columns of the lines around the smallest region that holds the share `held` of the mass."""
    return line_data(contour(result, held))


def line_data(lines: Lines) -> Columns:
    """The columns of lines that are given as points (col, row): one after the other, with NaN between them.

    As separate paths, a few hundred lines of a noisy map would take HoloViews seconds.
    """
    gap = np.full((1, 2), np.nan)
    points = np.concatenate([part for line in lines for part in (line, gap)] or [gap[:0]])
    return {"x": points[:, 0], "y": -points[:, 1]}


def lines_data(result: xr.Dataset) -> dict[str, Columns]:
    """Part -> columns for everything that consists of lines: each kind, what lies under all of them, their names."""
    found = line_parts(result)
    under = [line for lines in found.values() for line in lines]
    columns = {name: line_data(lines) for name, lines in {"casing": under, **found}.items()}
    named = labels(found, picture_size(result))
    x, y = np.array([col for col, _, _ in named]), np.array([-row for _, row, _ in named])
    return columns | {"names": {"x": x, "y": y, "text": [text for _, _, text in named]}}


def box_data(result: xr.Dataset) -> Columns:
    left, top, right, bottom = cell_box(result)
    return {"left": [left], "bottom": [-bottom], "right": [right], "top": [-top]}


def centre_data(result: xr.Dataset) -> Columns:
    x, y = centre(result)
    return {"x": [x], "y": [-y]}


def patches(result: xr.Dataset) -> dict[str, Columns]:
    """Part of the figure -> columns of its source, for a result with the same size of the picture and the same title.

    The picture is not among them.
    """
    lines = lines_data(result)
    return {"map": map_data(result), **lines, "cell": box_data(result), "centre": centre_data(result)}


def map_figure(
    result: xr.Dataset, picture: np.ndarray | None, limits: tuple[float, float], opacity: float = 0.85
) -> hv.Overlay:
    """The map over the picture, the regions that hold 50 % and 95 % of its mass, the theoretical field and the unit.

    Elements in the order of PARTS.

    Args:
        result: from `receptive_field`; of several units the middle one is drawn, otherwise `one_unit` chooses.
        picture: (H, W, 3) uint8, or None for a plain grey.
        limits: the colour range, from `colour_range` of everything that is compared.
        opacity: of the map over the picture.
    """
    data = patches(result)
    layers = [
        background(picture_size(result), picture),
        heat(picture_size(result), data["map"], limits).opts(alpha=1 if picture is None else opacity),
        path(data["casing"]).opts(**UNDER),
        path(data["field"]).opts(line_color=FIELD),
        path(data["statistics"]).opts(line_color=FIELD, line_dash="dashed"),
        path(data["most"]).opts(line_color=CONTOUR, line_dash="dashed"),
        path(data["half"]).opts(line_color=CONTOUR),
        path(data["axes"]).opts(line_color=CONTOUR, line_width=1),
        cell(data["cell"]),
        hv.Points(data["centre"]).opts(marker="diamond", size=11, fill_color=CONTOUR, line_color=CASING),
        line_names(data["names"]),
    ]
    return hv.Overlay(layers).opts(*frame(picture_size(result), title(result)))


#: Tools to look closer; the wheel is left to the page.
TOOLS = ["box_zoom", "pan", "reset"]


def background(size: tuple[int, int], picture: np.ndarray | None) -> hv.RGB:
    """The picture, or plain grey, on the pixels of the map."""
    rows, cols = size
    pixels = np.full((1, 1, 3), PADDING, np.uint8) if picture is None else picture
    return hv.RGB(pixels, bounds=(0, -rows, cols, 0))


def heat(size: tuple[int, int], columns: Columns, limits: tuple[float, float]) -> hv.Image:
    """The map as an image with a logarithmic colour range; under the pointer its values are read as numbers."""
    side = block_side(size)
    return image(columns, side).opts(
        cmap=SEQUENTIAL,
        clim=limits,
        cnorm="log",
        clabel="share of the mass per pixel",
        hover_tooltips=[*HOVER_PLACE, ("share per pixel", "@share{custom}"), ("held by all as high", "@held{0.0 %}")],
        hover_formatters=hover_formatters(size, side, "share"),
    )


def image(columns: Columns, side: int) -> hv.Image:
    """Blocks of `side` pixels as an image; the last of them may reach over the border of the picture."""
    arrays = [np.flipud(column[0]) for column in columns.values()]
    rows, cols = arrays[0].shape
    return hv.Image(np.dstack(arrays), bounds=(0, -rows * side, cols * side, 0), vdims=list(columns)).opts(
        colorbar=True,
        colorbar_opts={"width": 10, "padding": 2},
        clipping_colors={"NaN": "rgba(0, 0, 0, 0)"},
        tools=[],
    )


#: The place under the pointer, for tooltips.
HOVER_PLACE = [("row", "$y{custom}"), ("column", "$x{custom}")]


def hover_formatters(size: tuple[int, int], side: int, column: str) -> dict[str, CustomJSHover]:
    """How the tooltip of an image writes the pixels of the block under the pointer, and a column."""
    place = """
    const first = Math.floor(Math.abs(special_vars.%s) / side) * side
    const last = Math.min(first + side, size) - 1
    return first < last ? `${first} to ${last}` : String(first)
    """
    number = 'return value === 0 ? "0" : value.toExponential(2)'
    return {
        "$x": CustomJSHover(args={"side": side, "size": size[1]}, code=place % "x"),
        "$y": CustomJSHover(args={"side": side, "size": size[0]}, code=place % "y"),
        f"@{{{column}}}": CustomJSHover(code=number),  # as HoloViews writes the name of a column
    }


def path(columns: Columns) -> hv.Curve:
    """Lines as an element."""
    return hv.Curve(columns, "x", "y").opts(line_width=1.5)


def cell(columns: Columns) -> hv.Rectangles:
    """The cell of a unit."""
    return hv.Rectangles(columns, ["left", "bottom", "right", "top"]).opts(fill_alpha=0, line_color=QUERY, line_width=2)


def line_names(columns: Columns) -> hv.Labels:
    """The names of lines beside them."""
    return hv.Labels(columns, ["x", "y"], "text").opts(
        text_font_size="8pt",
        text_align="left",
        text_baseline="top",
        text_color="white",
        background_fill_color="black",
        background_fill_alpha=0.55,
    )


def frame(size: tuple[int, int], title_: str) -> list[Any]:
    """Options of a figure on the pixels of a picture, and of its elements."""
    tick = CustomJSTickFormatter(code="return String(Math.round(-tick))")
    axes_ = hv.opts.RGB(xlabel="column in pixels", ylabel="row in pixels", yformatter=tick)
    drawn = ("RGB", "Image", "Curve", "Rectangles", "Points", "Labels")
    whole = FRAME | {
        "title": title_,
        "toolbar": "below",
        "default_tools": TOOLS,
        "active_tools": ["box_zoom"],
        "backend_opts": {"plot.toolbar.logo": None},
        "show_legend": False,
        "hooks": [partial(_square_pixels, size)],
    }
    return [axes_, *(hv.Options(kind, default_tools=TOOLS) for kind in drawn), hv.opts.Overlay(**whole)]


#: What a figure of a usual width is wide, and what title, axes, colour bar and toolbar take of its width and height.
USUAL, BESIDE, ABOVE = 480, 145, 120

#: The most rows per column that a figure grows with; a taller picture has room at its sides.
TALLEST = 1.3


def _square_pixels(size: tuple[int, int], plot: Any, element: Any) -> None:
    """Show pixels as squares at any width of the page, which Bokeh does only for ranges that it finds itself.

    It adds room on two sides where the frame has another shape than the picture; the figure's own shape is such that
    there is next to none at the usual width. The room at the border is for lines that run along it.
    """
    figure = plot.state
    if isinstance(figure.x_range, DataRange1d):
        return
    renderers = figure.renderers[:1]
    figure.x_range, figure.y_range = (DataRange1d(renderers=renderers, range_padding=0.03) for _ in range(2))
    figure.aspect_ratio = USUAL / ((USUAL - BESIDE) * min(size[0] / size[1], TALLEST) + ABOVE)
