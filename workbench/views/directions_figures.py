"""The figures of the Directions page: the fronts, whose frames the browser draws alone, and the gates."""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from bokeh.models import ColumnDataSource, CustomJS

from workbench.plots.affinity import Mosaic
from workbench.plots.directions import (
    MERGED,
    chunk_segments,
    cone_segments,
    front_boxes,
    front_mosaic,
    mosaic_of,
    step_at,
    title,
)
from workbench.plots.directions_gates import gate_mosaic, gate_title

from .figure import PatchedFigure, boxes_data

#: The name of the source that holds what the browser draws the frames from; its tag is the frame.
STORE = "fronts"

#: Draws the frame in `store.tags` into the image and the lines, in place, so that nothing is sent anywhere.
DRAW = """
const [rows, cols, steps, towards, trail, large] = store.data.look[0]
const step_of = store.data.step_of[0], together = store.data.together[0], lines = store.data.lines[0]
const frame = Math.max(0, Math.min(store.tags[0] ?? 0, steps - 1)), step = towards ? steps - 1 - frame : frame
const n = rows * cols, directions = step_of.length / n
const image = heat.data.image[0], [height, width] = image.shape
const put = (panel, i, value) => {
  if (value === 0 || !isFinite(value)) return
  const [top, left, scale] = places[panel], row = top + scale * Math.floor(i / cols), col = left + scale * (i % cols)
  for (let r = row; r < row + scale; r++) {
    const start = (height - 1 - r) * width + col
    image.fill(value, start, start + scale)
  }
}
image.fill(NaN)
for (let i = 0; i < n; i++) {
  let bits = 0
  for (let k = 0; k < directions; k++) {
    const at = step_of[k * n + i]
    if (at === step || (trail && at >= 0 && (towards ? at > step : at < step))) {
      bits |= 1 << k
      put(k + 1, i, together[(1 << k) * n + i])
    }
  }
  if (bits && large < 0) put(0, i, together[bits * n + i])
  else if (bits >> large & 1) put(0, i, together[(1 << large) * n + i])
}
heat.change.emit()
const box = {left: [], bottom: [], right: [], top: []}
for (let k = 0; k < directions; k++) {
  const [left, bottom, right, top_] = lines.slice(4 * (k * steps + frame), 4 * (k * steps + frame) + 4)
  if (isNaN(left)) continue
  for (const panel of large < 0 || large === k ? [0, k + 1] : [k + 1]) {
    const [row, col, scale] = places[panel]
    box.left.push(col + scale * left); box.right.push(col + scale * right)
    box.bottom.push(scale * bottom - row); box.top.push(scale * top_ - row)
  }
}
Object.assign(fronts.data, box)
fronts.change.emit()
"""


class FrontFigure(PatchedFigure):
    """The fronts at one frame; `on_query(row, col)` is called when a cell is clicked.

    The browser is sent a result once and draws each frame of it alone, whenever the tag of the source named `STORE`
    changes.
    """

    def __init__(self, on_query: Callable[[int, int], None], name: str) -> None:
        super().__init__(self._tapped, name)
        self._on_query = on_query
        self._mosaic: Mosaic | None = None
        self._data: dict[str, Any] = {}
        self._frame = 0

    def _tapped(self, x: float, y: float) -> None:
        position = None if self._mosaic is None else self._mosaic.position_at(x, y)
        if position is not None:
            self._on_query(*position)

    def show(
        self,
        result: xr.Dataset,
        photograph: np.ndarray,
        frame: int,
        trail: bool,
        limits: tuple[float, float],
        scale: str,
        opacity: float,
        large: str = MERGED,
    ) -> None:
        """Draw a result of `directions`; the frame counts where the figure is built anew, the browser has its own."""
        self._mosaic = mosaic = mosaic_of(result)
        self._data, self._frame = store_data(result, trail, large), frame
        key = (title(result), mosaic, scale, limits[0] < 0, large, id(photograph))
        if key != self._key:
            figure = front_mosaic(result, photograph, frame, trail, limits, scale, opacity, large)
            parts = {"photo": 0, "heat": 1, "boxes": 2, "chunks": 3, "cone": 4, "fronts": 5}
            self._rebuild(key, figure.opts(title=title(result)), parts)
            return
        self._patch("boxes", boxes_data(mosaic.boxes(result.attrs["position"])))
        self._patch("chunks", _segments(chunk_segments(result, mosaic, large)))
        self._patch("cone", _segments(cone_segments(result, mosaic, large)))
        for handles in self._drawn.values():
            handles["heat"]["color_mapper"].update(low=limits[0], high=limits[1])
            handles["store"]["source"].data = self._data
        self.set_opacity(opacity)

    def set_opacity(self, opacity: float) -> None:
        """How strongly the fronts cover the photograph."""
        for handles in self._drawn.values():
            handles["heat"]["glyph"].global_alpha = opacity
        self._push()

    def _remember(self, name: str) -> Callable[[Any, Any], None]:
        inner = super()._remember(name)

        def hook(plot: Any, element: Any) -> None:
            inner(plot, element)
            drawn = self._drawn[plot.state.id]
            if name == "fronts" and "store" not in drawn and self._mosaic is not None:
                store = ColumnDataSource(self._data, name=STORE, tags=[self._frame])
                drawn["store"] = {"source": store}
                sources = {"store": store, "heat": drawn["heat"]["source"], "fronts": plot.handles["source"]}
                draw = CustomJS(args={**sources, "places": [list(p) for p in self._mosaic.places()]}, code=DRAW)
                store.js_on_change("tags", draw)
                store.js_on_change("data", draw)
                plot.state.js_on_change("inner_width", draw)  # which also makes the store part of the page

        return hook


def store_data(result: xr.Dataset, trail: bool, large: str) -> dict[str, Any]:
    """What the browser draws all frames from; columns of one entry each."""
    steps, names = result.sizes["step"], [str(name) for name in result["direction"].values]
    lines = np.full((len(names), steps, 4), np.nan)
    for frame in range(steps):
        for k, box in enumerate(front_boxes(result, frame)):
            if box is not None:
                lines[k, frame] = box
    number = -1 if large == MERGED else names.index(large)
    look = [*result.attrs["grid"], steps, int(result.attrs["spec"]["towards"]), int(trail), number]
    return {
        "look": [np.array(look, np.int32)],
        "step_of": [result["step_of"].values.astype(np.int32).ravel()],
        "together": [result["together"].values.astype(np.float32).ravel()],
        "lines": [lines.ravel()],
    }


def _segments(segments: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(("x0", "y0", "x1", "y1"), segments.T, strict=True))


class GateFigure(PatchedFigure):
    """The gates of one direction, and their flow; they depend on the picture but not on the position."""

    def __init__(self, name: str) -> None:
        super().__init__(lambda x, y: None, name)

    def show(self, result: xr.Dataset, direction: int, photograph: np.ndarray) -> None:
        """Draw the gates of a result of `directions`."""
        a = result.attrs
        settings = a["image_sha256"], a["weights_sha256"], a["merge"], a["chunk"], a["backend"]
        key = (title(result), *settings, direction, a["spec"]["channel"], id(photograph))
        if key != self._key:
            figure = gate_mosaic(result, direction, photograph).opts(title=gate_title(result, direction))
            self._rebuild(key, figure, {"gates": 0})


def frame_words(result: xr.Dataset, frame: int) -> str:
    """A frame in words: how far the fronts are, and what they hold."""
    step, last = step_at(result, frame), result.sizes["step"] - 1
    on = np.abs(np.nan_to_num(result["picture"].values)) * (result["step_of"].values == step)
    total = np.abs(np.nan_to_num(result["picture"].values)).sum()
    share = 100 * on.sum() / total if total > 0 else 0.0
    return f"step {step} of {last}: the lines of the fronts hold {share:.1f} % of the magnitude of all steps"
