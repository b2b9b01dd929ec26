"""Two figures that are built once and then patched: the mosaic of one model, and the photograph with its grid.

Redrawing a HoloViews figure costs more than everything else a click does, so as long as the layout stays the same only
the data of its Bokeh sources change. The sources are taken from a HoloViews hook at rendering.
"""

from collections.abc import Callable
from typing import Any

import holoviews as hv
import numpy as np
import panel as pn
import xarray as xr
from bokeh.events import DoubleTap, PressUp, Tap
from bokeh.models import ColumnDataSource, CustomJS

from workbench.plots.affinity import (
    Mosaic,
    affinity_mosaic,
    channel_mosaic,
    mosaic_of,
    over_channels,
    photograph_figure,
    shares,
    title,
)

from .state import session_document

Position = tuple[int, int]


class PatchedFigure:
    """A pane whose figure is rebuilt when its layout key changes, and patched otherwise."""

    def __init__(self, on_tap: Callable[[float, float], None], name: str) -> None:
        self.pane = pn.pane.HoloViews(
            None, sizing_mode="stretch_width", linked_axes=False, min_height=150, css_classes=[name], theme=None
        )
        self._key: Any = None
        self._on_tap = on_tap
        self._drawn: dict[str, dict[str, dict[str, Any]]] = {}  # figure id -> part -> HoloViews handles

    def _rebuild(self, key: Any, figure: hv.Overlay, parts: dict[str, int]) -> None:
        """Show a new figure; `parts` names its elements whose handles later patches need."""
        self._key, self._drawn = key, {}
        elements = list(figure)
        for name, index in parts.items():
            elements[index].opts(hooks=[self._remember(name)])
        if session_document() is None:  # in a notebook Bokeh's own events do not reach Python
            tap = hv.streams.Tap(source=elements[0])
            tap.add_subscriber(lambda x, y: None if x is None else self._on_tap(x, y))
        self.pane.object = figure

    def _remember(self, name: str) -> Callable[[Any, Any], None]:
        def hook(plot: Any, element: Any) -> None:
            figure = plot.state
            if figure.id not in self._drawn:  # a hook runs again when HoloViews refreshes the same figure
                self._drawn[figure.id] = {}
                # Where a browser has to emulate WebGL, every change of a figure takes a tenth of a second.
                figure.output_backend = "canvas"
                if session_document() is not None:
                    # A slow click and the second of two fast ones are events of their own to Bokeh.
                    for click in (Tap, DoubleTap, PressUp):
                        figure.on_event(click, lambda event: self._on_tap(event.x, event.y))
            self._drawn[figure.id][name] = plot.handles

        return hook

    def _patch(self, name: str, data: dict[str, Any]) -> None:
        for handles in self._drawn.values():
            handles[name]["source"].data.update(data)

    def _push(self) -> None:
        """In a notebook changes to Bokeh models are not sent by themselves."""
        if session_document() is None and self._drawn:
            pn.io.push_notebook(self.pane)


def boxes_data(boxes: list[tuple[float, float, float, float]]) -> dict[str, np.ndarray]:
    left, bottom, right, top = (np.array(side, float) for side in zip(*boxes, strict=True))
    return {"left": left, "bottom": bottom, "right": right, "top": top}


class MosaicFigure(PatchedFigure):
    """The merged map and the groups' maps of one model; `on_query(row, col)` is called when a cell is clicked.

    Of a layer that attends over channels it shows the channel matrices, and a click there asks for nothing.
    """

    def __init__(self, on_query: Callable[[int, int], None], name: str) -> None:
        super().__init__(self._tapped, name)
        self._on_query = on_query
        self._mosaic: Mosaic | None = None
        self._shown: Any = None

    def _tapped(self, x: float, y: float) -> None:
        position = None if self._mosaic is None else self._mosaic.position_at(x, y)
        if position is not None:
            self._on_query(*position)

    def show(
        self, result: xr.Dataset, photograph: np.ndarray, limits: tuple[float, float], scale: str, opacity: float
    ) -> None:
        """Draw a result of `affinity` or `channel_affinity`, with the colour range of all results of its kind."""
        channels, mosaic = over_channels(result), mosaic_of(result)
        behind = None if channels else (id(photograph), result.attrs.get("unpadded"))
        key = (title(result), mosaic, tuple(result["group"].values), scale, limits[0] < 0, behind)
        before, self._shown = self._shown, (result.attrs["hash"], limits, opacity)
        if key == self._key and self._shown == before:
            return  # a click on another figure, which changes nothing here
        if key != self._key:
            self._mosaic = None if channels else mosaic
            if channels:
                figure, parts = channel_mosaic(result, limits, scale), {"heat": 0}
            else:
                figure = affinity_mosaic(result, photograph, limits, scale, opacity)
                parts = {"photo": 0, "heat": 1, "boxes": 2}
            self._rebuild(key, figure.opts(title=title(result)), parts)
            return
        self._patch("heat", {"image": [np.flipud(mosaic.fill(shares(result)))]})
        if not channels:
            self._patch("boxes", boxes_data(mosaic.boxes(result.attrs["position"])))
        for handles in self._drawn.values():
            handles["heat"]["color_mapper"].update(low=limits[0], high=limits[1])
        self.set_opacity(opacity)

    def set_opacity(self, opacity: float) -> None:
        """How strongly the map covers the photograph; channel matrices cover none."""
        for handles in self._drawn.values():
            if self._mosaic is not None:
                handles["heat"]["glyph"].global_alpha = opacity
        self._push()


class PhotographFigure(PatchedFigure):
    """The photograph, the chosen query, and the cell under the pointer (drawn by the browser alone)."""

    def __init__(self, on_query: Callable[[int, int], None]) -> None:
        super().__init__(self._tapped, "photograph")
        self._on_query = on_query
        self._grid: Position = (1, 1)

    def _tapped(self, x: float, y: float) -> None:
        row, col = int(np.floor(-y)), int(np.floor(x))
        if 0 <= row < self._grid[0] and 0 <= col < self._grid[1]:
            self._on_query(row, col)

    def show(self, photograph: np.ndarray, grid: Position, position: Position, covered: Position) -> None:
        """Draw the photograph on the cells that it covers of a grid, and the query."""
        key = (id(photograph), grid, covered)
        row, col = position
        if key == self._key:
            self._patch("boxes", boxes_data([(col, -(row + 1), col + 1, -row)]))
            self._push()
            return
        self._grid = grid
        figure = photograph_figure(photograph, grid, position, covered)
        self._rebuild(key, figure, {"photo": 0, "boxes": 1, "pointer": 2})

    def _remember(self, name: str) -> Callable[[Any, Any], None]:
        if name != "pointer":
            return super()._remember(name)
        inner = super()._remember(name)

        def hook(plot: Any, element: Any) -> None:
            inner(plot, element)
            follow_pointer(plot.state, plot.handles["source"], self._grid)

        return hook


def follow_pointer(figure: Any, source: ColumnDataSource, grid: Position) -> None:
    """Outline the cell under the pointer, without asking the server; the figure is redrawn only for another cell."""
    code = """
    const col = Math.floor(cb_obj.x), row = Math.floor(-cb_obj.y)
    const inside = row >= 0 && row < rows && col >= 0 && col < cols
    const now = source.data
    if (inside ? now.left[0] === col && now.top[0] === -row : now.left.length === 0) return
    source.data = inside ? {left: [col], right: [col + 1], top: [-row], bottom: [-row - 1]}
                         : {left: [], right: [], top: [], bottom: []}
    """
    arguments = {"source": source, "rows": grid[0], "cols": grid[1]}
    figure.js_on_event("mousemove", CustomJS(args=arguments, code=code))
