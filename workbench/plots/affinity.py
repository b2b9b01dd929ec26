"""The affinity figure: one row or column of A over the photograph, merged and group by group, as one mosaic.

All panels are cells of one array, drawn as one image with one colour range, because a click must redraw them at once.
Plot coordinates: x runs right in cells of a group's panel, y is minus the row, so row 0 is on top. A layer that attends
over channels gives the same mosaic of its channel matrices, without a photograph and without a query.
"""

import math
from dataclasses import dataclass
from typing import Any

import colorcet as cc
import holoviews as hv
import numpy as np
import xarray as xr
from bokeh.models import CustomJSTickFormatter

#: Decades that the logarithmic colour range spans below its top.
DECADES = 4

#: Cells between panels, as a share of the merged panel's side.
_GAP = 0.02

#: Beyond these many groups, panels are too narrow for more than a number as label.
_NAMED = 9

#: What stands where there is a grid but no picture: tokens of padding.
PADDING = (128, 128, 128)

#: The colour of the chosen query's outline, in every figure.
QUERY = "#00e5ff"

#: Options of every figure of this page: fill the width, keep cells square, leave the wheel to the page.
FRAME: dict[str, Any] = {
    "responsive": True,
    "data_aspect": 1,
    "toolbar": None,
    "default_tools": [],
    "fontsize": {"title": "10pt"},
}

SEQUENTIAL = cc.CET_L3[20:]  # black-red-yellow heat, perceptually uniform, read by lightness alone
DIVERGING = cc.CET_D1A  # blue-white-red, safe for colour-blind viewers


@dataclass(frozen=True)
class Mosaic:
    """Where the panels lie: the merged one at m cells per position, beside it the groups on a square of m x m places.

    grid: (rows, cols) of positions; groups: their number. Array cells are (row, col) from the top left.
    """

    grid: tuple[int, int]
    groups: int

    def places(self) -> list[tuple[int, int, int]]:
        """(first row, first col, cells per position) of the merged panel, then of every group's."""
        rows, cols = self.grid
        side = math.ceil(math.sqrt(self.groups))
        gap = max(1, round(_GAP * side * max(self.grid)))
        places = [(0, 0, side)]
        for i in range(self.groups):
            r, c = divmod(i, side)
            places.append((r * (rows + gap), side * cols + 2 * gap + c * (cols + gap), 1))
        return places

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of the whole array."""
        ends = [(r + s * self.grid[0], c + s * self.grid[1]) for r, c, s in self.places()]
        return max(r for r, _ in ends), max(c for _, c in ends)

    def fill(self, maps: list[np.ndarray]) -> np.ndarray:
        """The mosaic of the merged map and the groups' maps; NaN between panels."""
        array = np.full(self.shape, np.nan, np.float32)
        for (row, col, scale), values in zip(self.places(), maps, strict=True):
            big = np.repeat(np.repeat(values, scale, 0), scale, 1)
            array[row : row + big.shape[0], col : col + big.shape[1]] = big
        return array

    def position_at(self, x: float, y: float) -> tuple[int, int] | None:
        """The (row, col) of the position under plot coordinates x, y, in whichever panel; None between panels."""
        for row, col, scale in self.places():
            r, c = math.floor((-y - row) / scale), math.floor((x - col) / scale)
            if 0 <= r < self.grid[0] and 0 <= c < self.grid[1]:
                return r, c
        return None

    def boxes(self, position: tuple[int, int]) -> list[tuple[float, float, float, float]]:
        """The query's cell in every panel, as (left, bottom, right, top) in plot coordinates."""
        r, c = position
        return [(col + c * s, -(row + (r + 1) * s), col + (c + 1) * s, -(row + r * s)) for row, col, s in self.places()]


def over_channels(result: xr.Dataset) -> bool:
    """Whether a result is about channels (`channel_affinity`) instead of positions (`affinity`)."""
    return "channel_out" in result.dims


def mosaic_of(result: xr.Dataset) -> Mosaic:
    """The mosaic that a result is drawn as."""
    rows, cols = result["merged"].shape
    return Mosaic((rows, cols), result.sizes["group"])


def shares(result: xr.Dataset) -> list[np.ndarray]:
    """The merged map and the groups' maps as shares of the merged mass; cells that carry nothing are NaN.

    Entries of channel matrices are shares of their rows as they are; there is no photograph behind them to be seen
    through, so none is NaN.
    """
    if over_channels(result):
        return [np.maximum(m, np.finfo(np.float32).tiny) for m in (result["merged"].values, *result["groups"].values)]
    mass = float(result["mass"].sel(of="merged"))
    maps = [result["merged"].values, *result["groups"].values]
    return [np.where(m == 0, np.nan, m / (mass or 1.0)).astype(np.float32) for m in maps]


def is_signed(result: xr.Dataset) -> bool:
    """Whether the combination of channels keeps signs that occur."""
    return bool((result["merged"] < 0).any() or (result["groups"] < 0).any())


def colour_range(results: list[xr.Dataset], scale: str) -> tuple[float, float]:
    """One range for every panel of every result: log: DECADES below the top; linear: from 0, or symmetric if signed.

    Signed maps have no logarithm, so they are drawn linearly whatever `scale` says.

    The top of a linear range is the 99.5th percentile of the cells read, so that a query's own cell does not hide the
    rest; the figure says so.
    """
    values = np.abs(np.concatenate([np.concatenate([m.ravel() for m in shares(r)]) for r in results]))
    values = values[np.isfinite(values)]
    if values.size == 0 or values.max() == 0:
        return 1e-4, 1.0
    signed = any(is_signed(r) for r in results)
    if scale == "log" and not signed:
        return float(values.max()) / 10**DECADES, float(values.max())
    top = float(np.percentile(values, 99.5))
    return (-top if signed else 0.0), top


#: Why there is no map of positions to draw for a layer that attends over channels.
WHY_CHANNELS = (
    "no N x N map of who reads whom among positions: these same d x d matrices mix the channels of every position, and "
    "all positions together make them"
)


def caption(result: xr.Dataset, scale: str, signed: bool) -> str:
    """The normalisation, sign rule, aggregation, backend and device that every figure prints."""
    a = result.attrs
    range_ = f"log colours over {DECADES} decades" if scale == "log" else "linear colours, top at the 99.5th percentile"
    ran = f"{a['backend']} backend, {a['dtype']}, {a['device']}"
    if over_channels(result):
        combined = f"merged: {a['aggregation']}"
        return f"{a['side']}; {combined}; share of the row, non-negative; {range_}, its own; {WHY_CHANNELS}; {ran}"
    magnitudes = a["spec"]["channel"] is None and a["spec"]["reduce"] != "mean"
    sign = "signed" if signed else "magnitudes" if magnitudes else "non-negative"
    merge = f", merge {a['merge']}" if "merge" in a else f", {a['pattern']}"
    chunk = "" if "chunk" not in a else ", global" if a["chunk"] is None else f", chunks of {a['chunk']} lines"
    padding = f", picture on {a['unpadded'][0]} x {a['unpadded'][1]} cells, padding grey" if "unpadded" in a else ""
    linearised = f"; {a['linearised']}" if "linearised" in a else ""
    return (
        f"{a['side']}{linearised}; {a['aggregation']}; share of the merged mass per cell, {sign}; {range_}; nothing "
        f"drawn where exactly 0{merge}{chunk}{padding}; {ran}"
    )


def title(result: xr.Dataset) -> str:
    a = result.attrs
    rows, cols = a["size"]
    weights = f"random weights, seed {a['seed']}" if a["weights"] == "random" else f"weights {a['weights']}"
    if over_channels(result):
        count = result.sizes["channel_out"]
        return f"{a['model']}  {a['layer']}  {count} x {count} channels of each head  ({weights})"
    grid = f"{result.sizes['row']} x {result.sizes['col']}"
    return f"{a['model']}  {a['layer']}  {grid} positions of {rows} x {cols} pixels  ({weights})"


def affinity_mosaic(
    result: xr.Dataset,
    photograph: np.ndarray,
    limits: tuple[float, float],
    scale: str = "log",
    opacity: float = 0.85,
) -> hv.Overlay:
    """The merged map and every group's over the photograph, one colour range, the query outlined in each panel.

    Args:
        result: from `affinity`.
        photograph: (H, W, 3) uint8, the part of the picture that the model sees.
        limits: the colour range, from `colour_range`.
        scale: "log" or "linear".
        opacity: of the map over the photograph.
    """
    mosaic = mosaic_of(result)
    picture = extended(photograph, result.attrs.get("unpadded", mosaic.grid), mosaic.grid)
    heat = heat_map(result, limits, scale, "share of mass").opts(alpha=opacity)
    names = labels(mosaic, ["merged", *result["group"].values])
    layers = photographs(mosaic, picture) * heat * query_boxes(mosaic, result.attrs["position"]) * names
    return layers.opts(hv.opts.RGB(xaxis=None, yaxis=None), hv.opts.Overlay(**FRAME))


def channel_mosaic(result: xr.Dataset, limits: tuple[float, float], scale: str = "log") -> hv.Overlay:
    """The matrices of `channel_affinity`, merged and of every head: channel out downwards, channel in across."""
    heat = heat_map(result, limits, scale, "share of the row")
    names = labels(mosaic_of(result), ["merged: channel out down, in across", *result["group"].values])
    return (heat * names).opts(hv.opts.Image(xaxis=None, yaxis=None), hv.opts.Overlay(**FRAME))


def heat_map(result: xr.Dataset, limits: tuple[float, float], scale: str, label: str) -> hv.Image:
    """The mosaic of a result's maps as one image."""
    mosaic = mosaic_of(result)
    rows, cols = mosaic.shape
    signed = limits[0] < 0
    return hv.Image(
        mosaic.fill(shares(result)), bounds=(0, -rows, cols, 0), vdims=[hv.Dimension("share", label=label)]
    ).opts(
        cmap=DIVERGING if signed else SEQUENTIAL,
        clim=limits,
        cnorm="log" if scale == "log" and not signed else "linear",
        colorbar=True,
        clipping_colors={"NaN": "rgba(0, 0, 0, 0)"},
        colorbar_opts={"title": label, "width": 10, "padding": 2},
        tools=[],
    )


def extended(photograph: np.ndarray, covered: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """The photograph, and grey below and on the right of it where the grid has tokens of padding.

    Args:
        photograph: (H, W, 3) uint8.
        covered: (rows, cols) of the grid that the photograph covers.
        grid: (rows, cols) of the whole grid.
    """
    if covered == grid:
        return photograph
    height, width = (round(n * g / c) for n, g, c in zip(photograph.shape[:2], grid, covered, strict=True))
    canvas = np.full((height, width, 3), PADDING, np.uint8)
    canvas[: photograph.shape[0], : photograph.shape[1]] = photograph
    return canvas


def photographs(mosaic: Mosaic, photograph: np.ndarray) -> hv.RGB:
    """The photograph under every panel; transparent between them."""
    rows, cols = mosaic.shape
    zoom = max(1, round(photograph.shape[0] / rows))
    canvas = np.zeros((rows * zoom, cols * zoom, 4), np.uint8)
    for row, col, scale in mosaic.places():
        h, w = scale * mosaic.grid[0] * zoom, scale * mosaic.grid[1] * zoom
        r = np.arange(h) * photograph.shape[0] // h
        c = np.arange(w) * photograph.shape[1] // w
        canvas[row * zoom : row * zoom + h, col * zoom : col * zoom + w, :3] = photograph[r[:, None], c[None, :]]
        canvas[row * zoom : row * zoom + h, col * zoom : col * zoom + w, 3] = 255
    return hv.RGB(canvas, bounds=(0, -rows, cols, 0))


def query_boxes(mosaic: Mosaic, position: tuple[int, int]) -> hv.Rectangles:
    """The query's cell outlined in every panel."""
    return hv.Rectangles(mosaic.boxes(position)).opts(fill_alpha=0, line_color=QUERY, line_width=2)


def labels(mosaic: Mosaic, names: list[str]) -> hv.Labels:
    """Each panel's name, just under its top edge; of many heads only the number."""
    places = mosaic.places()
    if mosaic.groups > _NAMED:
        names = [name.removeprefix("head ") for name in names]
    x = [col + 0.5 for _, col, _ in places]
    y = [-row - 0.5 for row, _, _ in places]
    texts = [name.replace("_", " ") for name in names]
    return hv.Labels({"x": x, "y": y, "text": texts}, ["x", "y"], "text").opts(
        text_font_size="9pt",
        text_align="left",
        text_baseline="top",
        text_color="white",
        background_fill_color="black",
        background_fill_alpha=0.55,
    )


def photograph_figure(
    photograph: np.ndarray,
    grid: tuple[int, int],
    position: tuple[int, int],
    covered: tuple[int, int] | None = None,
) -> hv.Overlay:
    """The photograph in grid coordinates (x: column, y: minus the row), the chosen query, and an empty pointer box.

    covered: (rows, cols) of the grid that the photograph covers, where that is not all of it.
    """
    photograph, (rows, cols) = extended(photograph, covered or grid, grid), grid
    r, c = position
    tick = CustomJSTickFormatter(code="return String(Math.round(-tick))")
    photo = hv.RGB(photograph, bounds=(0, -rows, cols, 0))
    box = hv.Rectangles([(c, -(r + 1), c + 1, -r)]).opts(fill_alpha=0, line_color=QUERY, line_width=3)
    pointer = hv.Rectangles([]).opts(fill_alpha=0, line_color="white", line_width=1.5, line_dash="dashed")
    return (photo * box * pointer).opts(
        hv.opts.RGB(xlabel="column", ylabel="row", yformatter=tick),
        hv.opts.Overlay(title="click a cell", **FRAME),
    )
