"""Where a model spends its time, layer by layer: bars of time, a roofline, and what the layers let one position read.

All three draw a result of `layer_latency`, also a partial one. Bars and affinity pictures are in the order of the
forward pass. Plot coordinates of the pictures: x runs right and y is minus the row, so row 0 is on top.
"""

import math
from functools import partial
from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr
from bokeh.models import CustomJSTickFormatter, DataRange1d

from .affinity import DECADES, FRAME, QUERY, SEQUENTIAL
from .receptive_field_curves import LINES, UNIFORM, line_style

Columns = dict[str, Any]

#: The parts of the bars with their colours, in the order in which they are stacked.
PARTS = {
    "mixing step": LINES[0].colour,
    "rest of the mixing layer": LINES[1].colour,
    "everything else": LINES[4].colour,
}
ELSE = "everything else"

#: Pixels of a bar, of the bars' figure without bars, and of the roofline.
BAR, AROUND, ROOFLINE = 20, 90, 360

#: Half the height of a bar, where bars are 1 apart.
HALF = 0.4

#: Affinity pictures in a row, and the space between them as a share of their longer side.
ACROSS, GAP = 7, 0.06
#: How wide the mosaic usually is on the page, and what the colour bar and the borders take of its width and height.
USUAL, BESIDE, ABOVE = 520, 75, 12

#: Behind the cells that carry nothing, where there is no photograph; seen on a white and on a dark page.
EMPTY = "#808080"

#: Whose time a part is, for the tooltip of the bars.
TOOLTIPS = [("layer", "@layer"), ("part", "@part"), ("median", "@ms{0.000} ms"), ("of the model", "@share{0.0 %}")]

LEGEND = {"background_fill_alpha": 0.0, "border_line_color": None, "label_text_font_size": "9pt"}


def bar_data(result: xr.Dataset) -> dict[str, Columns]:
    """Part -> the boxes of its bars in milliseconds: left, bottom, right, top, and what their tooltips tell.

    A layer that was not measured yet has no box. A layer that was measured to take less than its mixing step is drawn
    with the mixing step only. "everything else" is one bar, the last.
    """
    mixing, layer = (1e3 * result["median"].sel(part=part).values for part in ("mixing", "layer"))
    known, names = np.isfinite(layer), result["layer"].values.astype(str)
    rows = -np.arange(len(names), dtype=float)[known]
    mixing, end = mixing[known], np.maximum(layer, mixing)[known]
    rest = 1e3 * max(float(result["rest"]), 0.0) if result.attrs["complete"] else math.nan
    last = np.array([-float(len(names))] if math.isfinite(rest) else [])
    boxes = {
        "mixing step": (np.zeros_like(mixing), mixing, rows, names[known]),
        "rest of the mixing layer": (mixing, end, rows, names[known]),
        ELSE: (0 * last, 0 * last + rest, last, np.full(len(last), "")),
    }
    model = 1e3 * float(result["model_median"])
    return {
        part: {
            "left": left, "bottom": at - HALF, "right": right, "top": at + HALF,
            "layer": labels, "part": np.full(len(at), part), "ms": right - left, "share": (right - left) / model,
        }
        for part, (left, right, at, labels) in boxes.items()
    }  # fmt: skip


def spread_data(result: xr.Dataset) -> Columns:
    """The lines from p20 to p80 of the layers that were measured, in milliseconds."""
    low, high = (1e3 * result[name].sel(part="layer").values for name in ("p20", "p80"))
    known = np.isfinite(low)
    rows = -np.arange(len(low), dtype=float)[known]
    return {"x0": low[known], "y0": rows, "x1": high[known], "y1": rows}


def bar_names(result: xr.Dataset) -> list[tuple[int, str]]:
    """Where each bar lies and its name, which says if its time is noisy."""
    noisy = result["noisy"].any("part").values
    names = [f"{name}, noisy" if bad else str(name) for name, bad in zip(result["layer"].values, noisy, strict=True)]
    return [(-i, name) for i, name in enumerate([*names, ELSE])]


def layer_bars(result: xr.Dataset) -> hv.Overlay:
    """A bar for each layer: its mixing step and the rest of it, with p20 to p80; and one for everything else."""
    boxes, numbers = bar_data(result), ["layer", "part", "ms", "share"]
    layers: list[hv.Element] = [
        hv.Rectangles(columns, ["left", "bottom", "right", "top"], numbers, label=part).opts(
            color=PARTS[part], line_color=None, show_legend=True, tools=["hover"], hover_tooltips=TOOLTIPS
        )
        for part, columns in boxes.items()
    ]
    layers.append(hv.Segments(spread_data(result), ["x0", "y0", "x1", "y1"]).opts(color=UNIFORM.colour, line_width=2))
    names = bar_names(result)
    ends = [columns["right"].max(initial=0.0) for columns in boxes.values()]
    axes = {
        "xlabel": "median, ms", "ylabel": "", "yticks": names, "xlim": (0.0, 1.05 * (max(ends) or 1.0)),
        "ylim": (0.6 - len(names), 0.6),
    }  # fmt: skip
    frame = _frame(AROUND + BAR * len(names))
    return hv.Overlay(layers).opts(
        hv.opts.Rectangles(**axes), hv.opts.Segments(**axes), hv.opts.Overlay(**frame, hooks=[_names_only])
    )


def roofline_data(result: xr.Dataset) -> dict[str, Columns]:
    """Kind of layer -> the mixing steps of its layers: operations a byte, and reached operations a second."""
    mixing = result.sel(part="mixing")
    intensity, reached = mixing["flops"] / mixing["bytes"], mixing["flops"] / mixing["median"]
    columns = {
        "intensity": intensity.values,
        "reached": reached.values,
        "layer": result["layer"].values.astype(str),
        "ms": 1e3 * mixing["median"].values,
        "share": (mixing["floor"] / mixing["median"]).values,
    }
    kinds = result["kind"].values.astype(str)
    known = np.isfinite(columns["ms"])
    return {
        kind: {name: column[known & (kinds == kind)] for name, column in columns.items()}
        for kind in dict.fromkeys(kinds)
    }


def roof_data(result: xr.Dataset) -> Columns:
    """The roof: the measured bandwidth times the operations a byte, up to the measured matrix rate."""
    bandwidth, matmul = float(result["bandwidth"]), float(result["matmul"])
    ridge = matmul / bandwidth
    found = [columns["intensity"] for columns in roofline_data(result).values()]
    some = np.concatenate([*found, [ridge]])
    low, high = 10 ** math.floor(math.log10(some.min() / 2)), 10 ** math.ceil(math.log10(2 * some.max()))
    x = np.array([low, ridge, high])
    return {"intensity": x, "reached": np.minimum(bandwidth * x, matmul)}


def roofline(result: xr.Dataset) -> hv.Overlay:
    """The mixing step of each layer as a dot under the roof that copying and multiplying matrices set here."""
    x, y = ("intensity", "operations per least byte moved"), ("reached", "operations a second")
    roof, kinds = roof_data(result), roofline_data(result)
    layers: list[hv.Element] = [
        hv.Curve(roof, x, y, label="measured copy bandwidth and matrix rate").opts(
            color=UNIFORM.colour, line_width=2, tools=[]
        )
    ]
    tips = [
        ("layer", "@layer"), ("median", "@ms{0.000} ms"), ("operations per byte", "@intensity{0.00}"),
        ("operations a second", "@reached{0.00 a}"), ("floor's share of the time", "@share{0 %}"),
    ]  # fmt: skip
    for n, (kind, columns) in enumerate(kinds.items()):
        style = line_style(n)
        layers.append(
            hv.Points(columns, [x, y], ["layer", "ms", "share"], label=kind).opts(
                color=style.colour, marker=style.marker, size=10, alpha=0.8, tools=["hover"], hover_tooltips=tips
            )
        )
    reached = np.concatenate([roof["reached"], *(columns["reached"] for columns in kinds.values())])
    low, high = 10 ** math.floor(math.log10(reached.min())), 10 ** math.ceil(math.log10(1.2 * reached.max()))
    axes = {"logx": True, "logy": True, "xlim": (roof["intensity"][0], roof["intensity"][-1]), "ylim": (low, high)}
    return hv.Overlay(layers).opts(
        hv.opts.Curve(**axes, xformatter=_powers(), yformatter=_powers()),
        hv.opts.Points(**axes),
        hv.opts.Overlay(**_frame(ROOFLINE)),
    )


def _powers() -> CustomJSTickFormatter:
    """1000000 as 1M; a document needs a formatter of its own."""
    code = """
    for (const [size, name] of [[1e12, " T"], [1e9, " G"], [1e6, " M"], [1e3, " k"]])
      if (tick >= size) return String(+(tick / size).toPrecision(3)) + name
    return String(+tick.toPrecision(3))
    """
    return CustomJSTickFormatter(code=code)


def _frame(height: int) -> dict[str, Any]:
    """Options of the bars and of the roofline."""
    return {
        "responsive": True, "height": height, "toolbar": None, "default_tools": [], "show_grid": True,
        "legend_position": "bottom", "legend_cols": 3, "legend_opts": LEGEND, "fontsize": {"title": "10pt"},
    }  # fmt: skip


def _names_only(plot: Any, element: Any) -> None:
    """The bars' axis has names, not numbers: no lines of a grid and no marks between them."""
    plot.state.yaxis.minor_tick_line_color = None
    plot.state.ygrid.grid_line_color = None


def strip_maps(result: xr.Dataset) -> list[np.ndarray]:
    """Each layer's affinity over the cells that the picture covers, in units of an even spread; empty if there is none.

    The mass of a cell times the number of the layer's cells over the mass of all: 1 where all cells read alike would
    be, so that grids of different sizes share one colour range. Cells that carry nothing are NaN.
    """
    maps = []
    for i, note in enumerate(result["affinity_note"].values):
        one = result.isel(layer=i)
        values = np.abs(one["affinity"].values[: int(one["rows"]), : int(one["cols"])])
        if note:
            maps.append(values[:0, :0])
            continue
        even = np.where(values == 0, np.nan, values * (values.size / (values.sum() or 1.0)))
        maps.append(even[: int(one["covered_rows"]), : int(one["covered_cols"])])
    return maps


def strip_places(result: xr.Dataset) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """The (rows, cols) of every picture in units of the mosaic, and the (top, left) of each."""
    side = int(result["covered_rows"].max()), int(result["covered_cols"].max())
    gap = max(1, round(GAP * max(side)))
    return side, [(n // ACROSS * (side[0] + gap), n % ACROSS * (side[1] + gap)) for n in range(result.sizes["layer"])]


def strip_limits(result: xr.Dataset) -> tuple[float, float]:
    """The logarithmic colour range of all pictures: from the highest value as many decades down as other affinities."""
    tops = [float(np.nanmax(values)) for values in strip_maps(result) if np.isfinite(values).any()]
    top = max(tops, default=1.0)
    return top / 10**DECADES, top


def strip_array(result: xr.Dataset) -> np.ndarray:
    """The mosaic of all pictures, NaN where nothing is drawn."""
    (height, width), places = strip_places(result)
    canvas = np.full((places[-1][0] + height, max(left for _, left in places) + width), np.nan, np.float32)
    for values, (top, left) in zip(strip_maps(result), places, strict=True):
        if values.size:
            rows, cols = np.arange(height) * values.shape[0] // height, np.arange(width) * values.shape[1] // width
            canvas[top : top + height, left : left + width] = values[rows[:, None], cols[None, :]]
    return canvas


def affinity_strip(result: xr.Dataset, photograph: np.ndarray | None = None) -> hv.Overlay:
    """What the query reads in every layer, one picture each in the order of the bars, one colour range for all.

    Args:
        result: from `layer_latency`.
        photograph: (H, W, 3) uint8, to be seen through the pictures; None for plain grey.
    """
    (height, width), places = strip_places(result)
    values = strip_array(result)
    behind = _behind(result, photograph, values.shape)
    share = hv.Dimension("even", label="times an even share")
    heat = hv.Image(values, bounds=(0, -values.shape[0], values.shape[1], 0), vdims=[share]).opts(
        cmap=SEQUENTIAL, clim=strip_limits(result), cnorm="log", colorbar=True, alpha=1 if photograph is None else 0.85,
        clipping_colors={"NaN": "rgba(0, 0, 0, 0)"},
        colorbar_opts={"title": "times an even share", "width": 10, "padding": 2}, tools=[],
    )  # fmt: skip
    query = hv.Rectangles(_queries(result)).opts(fill_alpha=0, line_color=QUERY, line_width=1.5)
    texts = [
        f"{name}\n{note}" if note else str(name)
        for name, note in zip(result["layer"].values, result["affinity_note"].values, strict=True)
    ]
    names = hv.Labels(
        {"x": [left + 0.01 * width for _, left in places], "y": [-top - 0.01 * height for top, _ in places],
         "text": texts}, ["x", "y"], "text",
    ).opts(
        text_font_size="8pt", text_align="left", text_baseline="top", text_color="white",
        background_fill_color="black", background_fill_alpha=0.55,
    )  # fmt: skip
    shape = partial(_square_cells, values.shape)
    return (behind * heat * query * names).opts(
        hv.opts.RGB(xaxis=None, yaxis=None), hv.opts.Overlay(**FRAME, title="", hooks=[shape])
    )


def _square_cells(shape: tuple[int, ...], plot: Any, element: Any) -> None:
    """Give a mosaic of (rows, cols) cells the height at which they are squares, beside the colour bar."""
    figure = plot.state
    if not isinstance(figure.x_range, DataRange1d):
        renderers = figure.renderers[:1]
        figure.x_range, figure.y_range = (DataRange1d(renderers=renderers, range_padding=0.01) for _ in range(2))
    figure.frame_align = False  # with the frame of the bars above it, whose labels take much room
    figure.aspect_ratio = USUAL / ((USUAL - BESIDE) * shape[0] / shape[1] + ABOVE)


def _behind(result: xr.Dataset, photograph: np.ndarray | None, shape: tuple[int, ...]) -> hv.RGB:
    """What shows through the pictures; transparent between them."""
    (height, width), places = strip_places(result)
    grey = np.array([[[int(EMPTY[i : i + 2], 16) for i in (1, 3, 5)]]], np.uint8)
    pixels = grey if photograph is None else photograph
    zoom = max(1, min(4, round(pixels.shape[0] / height)))
    canvas = np.zeros((zoom * shape[0], zoom * shape[1], 4), np.uint8)
    rows = np.arange(zoom * height) * pixels.shape[0] // (zoom * height)
    cols = np.arange(zoom * width) * pixels.shape[1] // (zoom * width)
    opaque = np.dstack([pixels[rows[:, None], cols[None, :]], np.full((len(rows), len(cols)), 255, np.uint8)])
    for top, left in places:
        canvas[zoom * top : zoom * (top + height), zoom * left : zoom * (left + width)] = opaque
    return hv.RGB(canvas, bounds=(0, -shape[0], shape[1], 0))


def _queries(result: xr.Dataset) -> list[tuple[float, float, float, float]]:
    """The query's cell in every picture, (left, bottom, right, top) in plot coordinates."""
    (height, width), places = strip_places(result)
    boxes = []
    for i, (top, left) in enumerate(places):
        one = result.isel(layer=i)
        if one["affinity_note"].item():
            continue
        down, across = height / int(one["covered_rows"]), width / int(one["covered_cols"])
        r, c = one["position"].values
        boxes.append((left + c * across, -(top + (r + 1) * down), left + (c + 1) * across, -(top + r * down)))
    return boxes


def bars_caption(result: xr.Dataset) -> str:
    """What the bars show, and what was measured on what."""
    parts = [
        f"Each layer by itself on what it receives for {result.attrs['image']}, line: p20 to p80",
        f"everything else: the model's median, {1e3 * float(result['model_median']):.4g} ms"
        f"{', noisy' if result['model_noisy'] else ''}, less those of its layers",
        _ran(result),
    ]
    if result.attrs["note"]:
        parts.append(result.attrs["note"])
    return "; ".join(parts) + "."


def roofline_caption(result: xr.Dataset) -> str:
    """What the dots and the roof are."""
    bandwidth, matmul = (float(result[name]) / 1e9 for name in ("bandwidth", "matmul"))
    return (
        "Mixing steps by the operations and least bytes of their formulas; roof: measured here, copies at "
        f"{bandwidth:.3g} GB/s (read and written) and products of matrices at {matmul:.3g} Gflop/s; a dot above it "
        f"moves its bytes within a cache, faster than a large copy; {_ran(result)}."
    )


def strip_caption(result: xr.Dataset) -> str:
    """What the pictures show, and their aggregation and colours."""
    row, col = result.attrs["spec"]["query"]
    combined = " or ".join(dict.fromkeys(filter(None, result["aggregation"].values)))
    padded = bool((result["covered_rows"] < result["rows"]).any() or (result["covered_cols"] < result["cols"]).any())
    return (
        f"What the position at {row:.0%} of the height and {col:.0%} of the width reads in each layer (outlined: its "
        f"cell); {combined or 'nothing measured yet'}; mass of a cell in units of an even share, 1 where all cells of "
        f"the layer read alike; log colours over {DECADES} decades, one range; nothing drawn where exactly 0"
        f"{'; tokens of padding left out' if padded else ''}."
    )


def _ran(result: xr.Dataset) -> str:
    a = result.attrs
    return (
        f"{a['direction']}, batch {a['batch']}, {a['dtype']}, {a['backend']} backend, {a['method']}, "
        f"{a['device']} ({a['processor']})"
    )
