"""The figure of the fronts: every direction and their sum over the photograph, at one moment, as one mosaic.

All panels are cells of one array with one colour range for all moments, so that a player changes the array alone. Plot
coordinates are those of the affinity figure: x in cells, y minus the row.

A moment is a frame of the movie. Fronts that go out from a source are at step `frame`; fronts that come in to a query
start at the farthest line and are at step 0 in the last frame.
"""

from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr

from .affinity import DECADES, DIVERGING, FRAME, SEQUENTIAL, Mosaic, labels, photographs, query_boxes

#: Colours of the lines drawn over the panels: the front, the cone's border, and the borders of chunks.
FRONT, CONE, CHUNK = "#ffffff", "#7dff8a", "#ff7ac6"

#: What the large panel shows where it is not one direction.
MERGED = "merged"

Segments = np.ndarray  # (n, 4): x0, y0, x1, y1 in plot coordinates of one panel


def mosaic_of(result: xr.Dataset) -> Mosaic:
    """The mosaic that a result of `directions` is drawn as."""
    rows, cols = result["merged"].shape
    return Mosaic((rows, cols), result.sizes["direction"])


def step_at(result: xr.Dataset, frame: int) -> int:
    """The step that a frame of the movie shows."""
    last = result.sizes["step"] - 1
    return last - frame if result.attrs["spec"]["towards"] else frame


def arrived(result: xr.Dataset, frame: int, trail: bool) -> np.ndarray:
    """(direction, row, col) bool: what is seen of each direction: the line of the front, or every line passed."""
    step, step_of = step_at(result, frame), result["step_of"].values
    if not trail:
        return np.asarray(step_of == step)
    return np.asarray(step_of >= step if result.attrs["spec"]["towards"] else (step_of >= 0) & (step_of <= step))


def panels(result: xr.Dataset, frame: int, trail: bool, large: str = MERGED) -> list[np.ndarray]:
    """The maps of the large panel and of every direction at a moment; NaN where nothing is."""
    there, together = arrived(result, frame, trail), result["together"].values
    bits = np.left_shift(1, np.arange(len(there)))
    own = [np.where(there[k], together[bits[k]], 0) for k in range(len(there))]
    merged = np.take_along_axis(together, (bits[:, None, None] * there).sum(0)[None], 0)[0]
    names = [str(name) for name in result["direction"].values]
    first = merged if large == MERGED else own[names.index(large)]
    return [np.where((m == 0) | ~np.isfinite(m), np.nan, m).astype(np.float32) for m in (first, *own)]


def is_signed(result: xr.Dataset) -> bool:
    """Whether the combination of channels keeps signs that occur."""
    return bool((result["together"] < 0).any())


def colour_range(result: xr.Dataset, scale: str) -> tuple[float, float]:
    """One range for all panels and moments: log: DECADES below the top; linear: from 0, or symmetric if signed.

    The top of a linear range is the 99.5th percentile of what is not 0, so that the source's own cell does not hide
    the fronts. Signed maps have no logarithm and are drawn linearly whatever `scale` says.
    """
    values = np.abs(result["together"].values)
    values = values[np.isfinite(values) & (values > 0)]
    if values.size == 0:
        return 1e-4, 1.0
    signed = is_signed(result)
    if scale == "log" and not signed:
        return float(values.max()) / 10**DECADES, float(values.max())
    top = float(np.percentile(values, 99.5))
    return (-top if signed else 0.0), top


def title(result: xr.Dataset) -> str:
    """The model, its layer and its weights."""
    a = result.attrs
    weights = f"random weights, seed {a['seed']}" if a["weights"] == "random" else f"weights {a['weights']}"
    return f"{a['model']}  {a['layer']}  {a['grid'][0]} x {a['grid'][1]} positions  ({weights})"


def caption(result: xr.Dataset, scale: str) -> str:
    """What is drawn, its sign rule, aggregation, colours, merge, chunk, backend and device."""
    a, signed = result.attrs, is_signed(result)
    row, col = a["position"]
    side = "what each direction reads into the query" if a["spec"]["towards"] else "where each direction carries a one"
    at = "to" if a["spec"]["towards"] else "from"
    log = scale == "log" and not signed
    colours = f"log colours over {DECADES} decades" if log else "linear colours, top at the 99.5th percentile"
    sign = "signed" if signed else "magnitudes" if a["aggregation"].startswith(("mean of |", "root", "largest")) else ""
    sums = "merged: all directions added, then combined over channels"
    ran = f"{a['backend']} backend, {a['dtype']}, {a['device']}"
    parts = (
        f"{side}, {at} (row {row}, column {col}): {a['quantity']}", f"{a['aggregation']}{', ' if sign else ''}{sign}",
        sums, f"{colours}, one range for all steps; nothing drawn where exactly 0", merge_words(result), ran,
    )  # fmt: skip
    return "; ".join(parts)


def merge_words(result: xr.Dataset) -> str:
    """The merge and the chunks, and what a released merge means for the picture."""
    a = result.attrs
    chunk = "global scan" if a["chunk"] is None else f"chunks of {a['chunk']} lines"
    if a["merge"] != "released":
        return f"merge {a['merge']}, {chunk}"
    where = (
        "each query reads places of the picture that were carried into the scan's frame, and they are shown in the "
        "picture"
        if a["spec"]["towards"]
        else "nothing is carried back to the picture, so each scan runs from left to right in its own frame and lands "
        "at mirrored or transposed places"
    )
    return f"merge released: {where}; gates in the scan's frame; {chunk}"


# Lines over the panels


def front_boxes(result: xr.Dataset, frame: int) -> list[tuple[float, float, float, float] | None]:
    """The line of every direction's front as (left, bottom, right, top) in a panel; None where it is not there."""
    boxes: list[tuple[float, float, float, float] | None] = []
    for there in arrived(result, frame, trail=False):
        rows, cols = np.nonzero(there)
        found = (cols.min(), -(rows.max() + 1), cols.max() + 1, -rows.min()) if rows.size else None
        boxes.append(None if found is None else (float(found[0]), float(found[1]), float(found[2]), float(found[3])))
    return boxes


def outline(mask: np.ndarray) -> Segments:
    """The border of a (row, col) bool map as segments between cells."""
    padded = np.pad(mask, 1)
    rows, cols = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])  # edges above a cell
    across = np.stack([cols, -rows, cols + 1, -rows], 1)
    rows, cols = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])  # edges left of a cell
    down = np.stack([cols, -rows, cols, -(rows + 1)], 1)
    return np.concatenate([across, down]).astype(float)


def chunk_lines(result: xr.Dataset, direction: int) -> Segments:
    """The borders between the chunks of a direction."""
    rows, cols = result.attrs["grid"]
    edges = result["chunk_edge"].values[direction]
    edges = edges[np.isfinite(edges)]
    low = np.zeros_like(edges)
    name = str(result["direction"].values[direction])
    landed = result.attrs["merge"] == "released" and not result.attrs["spec"]["towards"]
    if landed or name in ("left_right", "right_left"):
        return np.stack([edges, low, edges, low - rows], 1)
    return np.stack([low, -edges, low + cols, -edges], 1)


def moves(result: xr.Dataset, direction: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(down, right) of one line on in the sense of a direction, and of one index on along a line."""
    name = "left_right" if result.attrs["merge"] == "released" else str(result["direction"].values[direction])
    along = {"left_right": (0, 1), "right_left": (0, -1), "top_bottom": (1, 0), "bottom_top": (-1, 0)}[name]
    return along, (1, 0) if along[1] else (0, 1)


def in_panels(mosaic: Mosaic, large: list[Segments], own: list[Segments]) -> Segments:
    """Segments of the large panel and of every direction's panel, in the coordinates of the mosaic."""
    placed = []
    for (row, col, scale), found in zip(mosaic.places(), [np.concatenate(large), *own], strict=True):
        placed.append(found.reshape(-1, 4) * scale + np.array([col, -row, col, -row]))
    return np.concatenate(placed)


def cone_segments(result: xr.Dataset, mosaic: Mosaic, large: str) -> Segments:
    """The cones' borders: in the large panel of all directions, or of the one that it shows."""
    own = [outline(mask) for mask in result["cone"].values]
    return in_panels(mosaic, _of_large(result, own, large), own)


def chunk_segments(result: xr.Dataset, mosaic: Mosaic, large: str) -> Segments:
    """The chunks' borders, as `cone_segments`."""
    own = [chunk_lines(result, k) for k in range(result.sizes["direction"])]
    return in_panels(mosaic, _of_large(result, own, large), own)


def fronts_in_panels(
    result: xr.Dataset, mosaic: Mosaic, frame: int, large: str
) -> list[tuple[float, float, float, float]]:
    """The lines of the fronts in the panels, as boxes."""
    boxes = front_boxes(result, frame)
    placed = [(0, box) for box in _of_large(result, boxes, large)] + list(enumerate(boxes, 1))
    places, found = mosaic.places(), []
    for panel, box in placed:
        if box is not None:
            row, col, s = places[panel]
            found.append((col + s * box[0], s * box[1] - row, col + s * box[2], s * box[3] - row))
    return found


def _of_large(result: xr.Dataset, items: list[Any], large: str) -> list[Any]:
    return items if large == MERGED else [items[[*result["direction"].values].index(large)]]


def panel_names(result: xr.Dataset, large: str) -> list[str]:
    """The labels of the panels, with the learned weight of each direction."""
    weights = zip(result["direction"].values, result["weight"].values, strict=True)
    return [large if large == MERGED else words(large), *(f"{words(name)}, m = {m:.2g}" for name, m in weights)]


def words(direction: str) -> str:
    """A direction's name as people say it."""
    return str(direction).replace("_", " to ")


def front_mosaic(
    result: xr.Dataset,
    photograph: np.ndarray,
    frame: int,
    trail: bool,
    limits: tuple[float, float],
    scale: str = "log",
    opacity: float = 0.85,
    large: str = MERGED,
) -> hv.Overlay:
    """The moment of a frame: the large panel, and beside it every direction's, over the photograph.

    Args:
        result: from `directions`.
        photograph: (H, W, 3) uint8.
        frame: 0 to steps - 1.
        trail: show the lines already passed, too.
        limits: the colour range, from `colour_range`.
        scale: "log" or "linear".
        opacity: of the maps over the photograph.
        large: "merged" or a direction.
    """
    mosaic = mosaic_of(result)
    heat = heat_map(mosaic, panels(result, frame, trail, large), limits, scale).opts(alpha=opacity)
    lines = [
        hv.Segments(chunk_segments(result, mosaic, large)).opts(
            color=CHUNK, line_width=1, line_dash="dotted", alpha=0.6
        ),
        hv.Segments(cone_segments(result, mosaic, large)).opts(color=CONE, line_width=1),
        hv.Rectangles(fronts_in_panels(result, mosaic, frame, large)).opts(
            fill_alpha=0, line_color=FRONT, line_width=1
        ),
    ]
    boxes = query_boxes(mosaic, result.attrs["position"])
    names = labels(mosaic, panel_names(result, large))
    layers = photographs(mosaic, photograph) * heat * boxes * lines[0] * lines[1] * lines[2] * names
    return layers.opts(hv.opts.RGB(xaxis=None, yaxis=None), hv.opts.Overlay(**FRAME))


def heat_map(mosaic: Mosaic, maps: list[np.ndarray], limits: tuple[float, float], scale: str) -> hv.Image:
    """The panels as one image with a colour bar."""
    rows, cols = mosaic.shape
    signed = limits[0] < 0
    dimension = hv.Dimension("value", label="response to a one")
    return hv.Image(mosaic.fill(maps), bounds=(0, -rows, cols, 0), vdims=[dimension]).opts(
        cmap=DIVERGING if signed else SEQUENTIAL,
        clim=limits,
        cnorm="log" if scale == "log" and not signed else "linear",
        colorbar=True,
        clipping_colors={"NaN": "rgba(0, 0, 0, 0)"},
        colorbar_opts={"title": "response", "width": 10, "padding": 2},
        tools=[],
    )
