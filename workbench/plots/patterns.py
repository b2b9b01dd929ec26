"""The figures of a pattern: the keys of a query and its reach over a photograph, and the matrix of who reaches whom.

A colour is a number of blocks, the same in every panel of every pattern on the page. Plot coordinates of the maps are
those of the affinity mosaic; in the matrix x is the key's number and y minus the query's, so query 0 is on top.
"""

import math

import colorcet as cc
import holoviews as hv
import numpy as np
import xarray as xr
from bokeh.models import CustomJSTickFormatter

from workbench.analysis.reach import NEVER

from .affinity import FRAME, QUERY, Mosaic, labels, photographs, query_boxes

#: Pixels of the matrix along its sides: more than the screen gives it on a common page.
PIXELS = 480

#: Blue to yellow by way of magenta, perceptually uniform and read by lightness alone; few blocks are bright.
_COLOURS = cc.bmy[255:40:-1]

#: The window that is shown under the pointer.
PREVIEW = "white"


def deepest(results: list[xr.Dataset]) -> int:
    """The largest number of blocks that any of the results needs for what it reaches, at least 1."""
    return max(1, *(r.sizes["after"] - 1 for r in results))


def palette(most: int) -> list[str]:
    """A colour for 1, 2, ... `most` blocks; the first few differ most, because they hold the shape of the pattern."""
    places = np.sqrt(np.linspace(0, 1, most)) * (len(_COLOURS) - 1)
    return [_COLOURS[round(float(place))] for place in places]


def mosaic_of(result: xr.Dataset) -> Mosaic:
    """The reach as the large panel, and the keys of every block of the cycle."""
    return Mosaic((result.sizes["row"], result.sizes["col"]), result.sizes["block"])


def panels(result: xr.Dataset, after: int) -> list[np.ndarray]:
    """Numbers of blocks: what the query depends on after up to `after` blocks, then its keys of every block.

    A key of any block is drawn as 1, because one block reads it; what is not reached is NaN, and so is what is the
    query itself in the reach.
    """
    blocks = result["blocks"].values
    reached = np.where((blocks >= 1) & (blocks <= after), blocks, np.nan).astype(np.float32)
    return [reached, *np.where(result["keys"].values, np.float32(1), np.float32(np.nan))]


def panel_names(result: xr.Dataset) -> list[str]:
    count = result.sizes["block"]
    return ["reach of the stack", *(f"keys, block {n + 1}" if count > 1 else "keys of a block" for n in range(count))]


def caption(result: xr.Dataset, after: int) -> str:
    """What the figure shows, how it is normalised, and what it leaves out."""
    cycle = ", then ".join(str(name) for name in result["block"].values)
    again = ", and so on again" if result.sizes["block"] > 1 else " in every block"
    return (
        f"Blocks in turn: {cycle}{again}. First panel: what the query depends on after {_blocks(after)}, one colour "
        "per smallest number of blocks; the others: the keys that it reads in one block. Exact, from the pattern "
        "alone: a key is read or not, and no weight is shown. Nothing is drawn where nothing is reached."
    )


def _blocks(count: int) -> str:
    return "1 block" if count == 1 else f"up to {count} blocks"


def title(result: xr.Dataset) -> str:
    return f"{result.attrs['spec']['pattern']}  on {result.sizes['row']} x {result.sizes['col']} positions"


def pattern_mosaic(
    result: xr.Dataset, photograph: np.ndarray, most: int, after: int, opacity: float = 0.75
) -> hv.Overlay:
    """The reach and the keys of one query over the photograph, the query outlined in every panel.

    Elements in order: photographs, map, query, the windows under the pointer and their numbers of keys, names.

    Args:
        result: from `patterns`.
        photograph: (H, W, 3) uint8.
        most: the largest number of blocks that has a colour, from `deepest` of everything on the page.
        after: blocks of the stack that is shown.
        opacity: of the map over the photograph.
    """
    mosaic = mosaic_of(result)
    rows, cols = mosaic.shape
    heat = hv.Image(mosaic.fill(panels(result, after)), bounds=(0, -rows, cols, 0), vdims=["blocks"]).opts(
        alpha=opacity,
        tools=[],
        colorbar=True,
        colorbar_opts={"title": "blocks", "width": 10, "padding": 2},
        cticks=list(range(1, most + 1, -(-most // 8))),
        **_colours(most),
    )
    preview = hv.Rectangles([]).opts(fill_alpha=0, line_color=PREVIEW, line_width=1.5, line_dash="dashed")
    layers = photographs(mosaic, photograph) * heat * query_boxes(mosaic, result.attrs["position"]) * preview
    layers = layers * pointer_texts() * labels(mosaic, panel_names(result))
    return layers.opts(hv.opts.RGB(xaxis=None, yaxis=None), hv.opts.Overlay(**FRAME))


def pointer_texts() -> hv.Labels:
    """The texts under the pointer: none yet."""
    return hv.Labels({"x": [0.0], "y": [0.0], "text": [""]}, ["x", "y"], "text").opts(
        text_font_size="9pt",
        text_align="left",
        text_baseline="bottom",
        text_color="white",
        background_fill_color="black",
        background_fill_alpha=0.7,
    )


def _colours(most: int) -> dict[str, object]:
    """Options of an image whose values are numbers of blocks."""
    return {
        "cmap": palette(most),
        "clim": (0.5, most + 0.5),
        "clipping_colors": {"NaN": "rgba(0, 0, 0, 0)"},
    }


def aggregate(
    relation: np.ndarray, keys: tuple[float, float], queries: tuple[float, float], pixels: int = PIXELS
) -> np.ndarray:
    """The part of a matrix that is in view, as (pixels, pixels) uint8: the smallest number of blocks in each pixel.

    Args:
        relation: (query, key) uint8 from `relation`.
        keys, queries: the first and last number in view, as edges of cells.
        pixels: along each side.
    """
    import datashader as ds  # imported and compiled late: seconds that only the matrix needs

    rows, cols = (slice(math.floor(low), math.ceil(high)) for low, high in (queries, keys))
    # A copy of the part, because datashader's code is compiled again for an array that is a view of another one; and at
    # least two cells a side, from which it takes their distance.
    part = np.ascontiguousarray(relation[rows, cols])
    part = np.pad(part, [(0, max(0, 2 - n)) for n in part.shape], constant_values=NEVER)
    y, x = (s.start + 0.5 + np.arange(n) for s, n in zip((rows, cols), part.shape, strict=True))
    array = xr.DataArray(part, dims=("query", "key"), coords={"query": y, "key": x})
    canvas = ds.Canvas(pixels, pixels, x_range=keys, y_range=queries)
    return canvas.raster(array, agg="min", interpolate="nearest").values.astype(np.uint8)


def visible(aggregated: np.ndarray, after: int) -> np.ndarray:
    """Numbers of blocks up to `after` as float32, NaN for the rest; a position's own cell counts as read."""
    blocks = np.maximum(aggregated, 1).astype(np.float32)
    blocks[(aggregated == NEVER) | (aggregated > after)] = np.nan
    return blocks


def matrix_figure(name: str, aggregated: np.ndarray, size: int, query: int, most: int, after: int) -> hv.Overlay:
    """The matrix of who depends on whom, with the chosen query's row marked; positions count row by row.

    Elements in order: matrix, query.

    Args:
        name: the pattern's.
        aggregated: the whole of it, from `aggregate`.
        size: positions of the grid.
        query: the number of the chosen one.
        most, after: as in `pattern_mosaic`.
    """
    image = hv.Image(
        visible(aggregated, after), bounds=(0, -size, size, 0), kdims=["key", "query"], vdims=["blocks"]
    ).opts(tools=[], **_colours(most))
    mark = hv.Rectangles([query_row(query, size)]).opts(fill_alpha=0, line_color=QUERY, line_width=1.5)
    tools = ["box_zoom", "pan", "reset"]
    tick = CustomJSTickFormatter(code="return String(Math.round(-tick))")
    options = FRAME | {
        "toolbar": "below",
        "default_tools": tools,
        "active_tools": ["box_zoom"],
        "backend_opts": {"plot.toolbar.logo": None},
    }
    return (image * mark).opts(
        hv.opts.Image(xlabel="key", ylabel="query", yformatter=tick, xticks=3, yticks=5, default_tools=tools),
        hv.opts.Rectangles(default_tools=tools),
        hv.opts.Overlay(title=name, **options),
    )


def query_row(query: int, size: int) -> tuple[float, float, float, float]:
    """The chosen query's row in the matrix, as (left, bottom, right, top) in plot coordinates."""
    return 0.0, -(query + 1.0), float(size), -float(query)
