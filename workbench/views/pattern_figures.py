"""The figures of the Patterns page, built once and then patched: the maps of a query, the matrix of a pattern."""

from collections.abc import Callable
from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr
from bokeh.events import RangesUpdate
from bokeh.models import ColumnDataSource, CustomJS

from workbench.plots.affinity import Mosaic
from workbench.plots.patterns import (
    aggregate,
    matrix_figure,
    mosaic_of,
    panels,
    pattern_mosaic,
    query_row,
    title,
    visible,
)

from .figure import PatchedFigure, boxes_data
from .state import session_document


class PatternFigure(PatchedFigure):
    """The reach and the keys of one query; `on_query(row, col)` is called when a cell is clicked."""

    def __init__(self, on_query: Callable[[int, int], None], name: str) -> None:
        super().__init__(self._tapped, name)
        self._on_query = on_query
        self._mosaic: Mosaic | None = None
        self._result: xr.Dataset | None = None

    def _tapped(self, x: float, y: float) -> None:
        position = None if self._mosaic is None else self._mosaic.position_at(x, y)
        if position is not None:
            self._on_query(*position)

    def show(self, result: xr.Dataset, photograph: np.ndarray, most: int, after: int, opacity: float) -> None:
        """Draw a result of `patterns`; `most` is the largest number of blocks on the page, `after` the one shown."""
        self._mosaic = mosaic = mosaic_of(result)
        self._result = result
        key = (title(result), mosaic, most, id(photograph))
        if key != self._key:
            figure = pattern_mosaic(result, photograph, most, after, opacity).opts(title=title(result))
            self._rebuild(key, figure, {"photo": 0, "heat": 1, "boxes": 2, "preview": 3, "texts": 4})
            return
        self._patch("heat", {"image": [np.flipud(mosaic.fill(panels(result, after)))]})
        self._patch("boxes", boxes_data(mosaic.boxes(result.attrs["position"])))
        self._push()

    def set_opacity(self, opacity: float) -> None:
        for handles in self._drawn.values():
            handles["heat"]["glyph"].global_alpha = opacity
        self._push()

    def _remember(self, name: str) -> Callable[[Any, Any], None]:
        inner = super()._remember(name)
        if name != "texts":
            return inner

        def hook(plot: Any, element: Any) -> None:
            inner(plot, element)
            drawn = self._drawn[plot.state.id]
            if "followed" not in drawn and self._result is not None and self._mosaic is not None:
                drawn["followed"] = {}
                sources = drawn["preview"]["source"], plot.handles["source"]
                show_windows_under_pointer(plot.state, *sources, self._mosaic, self._result)

        return hook


def show_windows_under_pointer(
    figure: Any, boxes: ColumnDataSource, texts: ColumnDataSource, mosaic: Mosaic, result: xr.Dataset
) -> None:
    """Outline the cell under the pointer and the window that it reads in every block, with its number of keys.

    The browser does this alone: it is sent the windows and the numbers of keys of every query once.
    """
    code = """
    const at = places.map(([row, col, s]) => [Math.floor((-cb_obj.y - row) / s), Math.floor((cb_obj.x - col) / s)])
    const found = at.find(([r, c]) => r >= 0 && r < rows && c >= 0 && c < cols)
    const cell = found === undefined ? -1 : found[0] * cols + found[1]
    if (cell === boxes.tags[0]) return
    boxes.tags[0] = cell
    const b = {left: [], right: [], top: [], bottom: []}, t = {x: [], y: [], text: []}
    if (cell >= 0) places.forEach(([row, col, s], panel) => {
        const k = panel - 1, w = 4 * (k * rows * cols + cell)
        const [r0, r1, c0, c1] = k < 0 ? [found[0], found[0], found[1], found[1]] : windows.slice(w, w + 4)
        b.left.push(col + s * c0); b.right.push(col + s * (c1 + 1))
        b.top.push(-(row + s * r0)); b.bottom.push(-(row + s * (r1 + 1)))
        t.x.push(col + 0.5); t.y.push(-(row + s * rows) + 0.5)
        t.text.push(k < 0 ? `row ${found[0]}, column ${found[1]}` : `${counts[k * rows * cols + cell]} keys`)
    })
    boxes.data = b
    texts.data = t
    """
    boxes.tags = [-1]
    arguments = {
        "boxes": boxes,
        "texts": texts,
        "places": [list(place) for place in mosaic.places()],
        "rows": mosaic.grid[0],
        "cols": mosaic.grid[1],
        "windows": result["window"].values.astype(np.int32).ravel(),
        "counts": result["counts"].values.astype(np.int32).ravel(),
    }
    figure.js_on_event("mousemove", CustomJS(args=arguments, code=code))


class MatrixFigure(PatchedFigure):
    """Who depends on whom; zooming aggregates the part in view again, down to single pairs."""

    def __init__(self, name: str) -> None:
        super().__init__(lambda x, y: None, name)
        self._relation = self._view = np.zeros((1, 1), np.uint8)
        self._after = 1

    def show(
        self, pattern: str, relation: np.ndarray, aggregated: np.ndarray, query: int, most: int, after: int
    ) -> None:
        """Draw a pattern's `relation`; `aggregated` is the whole of it at the figure's resolution."""
        size = len(relation)
        changed, self._after = after != self._after, after
        if (key := (pattern, size, most)) != self._key:
            self._relation, self._view = relation, aggregated
            family = pattern.partition("(")[0]  # the arguments do not fit, and stand over the maps
            figure = matrix_figure(family, aggregated, size, query, most, after)
            self._rebuild(key, figure, {"matrix": 0, "query": 1})
            return
        self._patch("query", boxes_data([query_row(query, size)]))
        if changed:
            self._patch("matrix", {"image": [np.flipud(visible(self._view, after))]})
        self._push()

    def zoom(self, keys: tuple[float, float], queries: tuple[float, float]) -> None:
        """Aggregate the keys and queries between these edges, and show them where they lie."""
        size = len(self._relation)
        left, right = max(0.0, min(keys)), min(float(size), max(keys))
        top, bottom = max(0.0, min(queries)), min(float(size), max(queries))
        if right - left < 1 or bottom - top < 1:
            return
        self._view = aggregate(self._relation, (left, right), (top, bottom))
        image = np.flipud(visible(self._view, self._after))
        extent = {"x": [left], "y": [-bottom], "dw": [right - left], "dh": [bottom - top]}
        self._patch("matrix", {"image": [image], **extent})
        self._push()

    def _rebuild(self, key: Any, figure: hv.Overlay, parts: dict[str, int]) -> None:
        super()._rebuild(key, figure, parts)
        if session_document() is None:
            ranges = hv.streams.RangeXY(source=next(iter(figure)))
            ranges.add_subscriber(self._ranged)

    def _ranged(self, x_range: Any, y_range: Any) -> None:
        if x_range is not None and y_range is not None:
            self.zoom(x_range, (-y_range[1], -y_range[0]))

    def _remember(self, name: str) -> Callable[[Any, Any], None]:
        inner = super()._remember(name)

        def hook(plot: Any, element: Any) -> None:
            known = plot.state.id in self._drawn
            inner(plot, element)
            if not known and session_document() is not None:
                plot.state.on_event(RangesUpdate, lambda e: self._ranged((e.x0, e.x1), (e.y0, e.y1)))

        return hook
