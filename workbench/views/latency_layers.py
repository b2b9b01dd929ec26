"""The second part of the Latency page: where one model spends its time, layer by layer, and what each layer reads."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import holoviews as hv
import numpy as np
import panel as pn
import panel_material_ui as pmui
import param
import xarray as xr

from workbench.analysis.latency_layers import layer_latency
from workbench.plots import latency_layers as plots
from workbench.plots.receptive_field_curves import LEGEND_ROW

from .figure import PatchedFigure
from .lane import Job
from .latency_request import BUILDING, DRAWING, wait_until
from .latency_tables import layers_line, layers_table
from .page import WIDE, WRAP
from .request import DISPLAY
from .state import KERNELS, deliverer, shared_image, shared_model
from .tables import caption_html
from .text import Html

if TYPE_CHECKING:
    from .latency import LatencyView

WAITING = "<b>Waiting</b> for the lane, then measuring the whole model"
COMPILING = "<b>Waiting</b>: the CPU kernels are being compiled, which would disturb the timing; it begins after that."


@dataclass(frozen=True)
class LayersRequest:
    """A model and a picture; query: (row, col) as shares of the picture; seconds: for each part of each layer."""

    model: str
    image: str
    upload: bytes | None
    query: tuple[float, float]
    seconds: float


@dataclass(frozen=True)
class LayersDrawing:
    """The layers that were measured so far, `done` of `total`, over the photograph."""

    request: LayersRequest
    result: xr.Dataset
    photograph: np.ndarray
    done: int
    total: int
    running: bool


#: What this process has measured, the newest last.
MEASURED: dict[LayersRequest, LayersDrawing] = {}
MOST = 8

Publish = Callable[[LayersDrawing], None]


def time_layers(
    request: LayersRequest, publish: Publish, drawn: Callable[[LayersDrawing], bool], job: Job
) -> LayersDrawing | Exception:
    """Time a model layer by layer in one turn of the lane; a failure is the result, because the page stops waiting.

    publish: is given what is known after every layer; drawn: whether the page shows that, for which the next one waits.
    """
    try:
        model = shared_model(request.model)
        model.set_backend(KERNELS.backend)
        source = request.image if request.upload is None else request.upload
        photograph = shared_image(source, DISPLAY).rgb
        last: list[LayersDrawing] = []

        def progress(result: xr.Dataset, done: int, total: int) -> None:
            last[:] = [LayersDrawing(request, result, photograph, done, total, running=True)]
            if not job.cancelled.is_set():
                publish(last[0])
                wait_until(partial(drawn, last[0]), job, DRAWING if done > 1 else BUILDING)

        image = shared_image(source, model.input_size)
        layer_latency(
            model, image, seconds=request.seconds, query=request.query, cancelled=job.cancelled.is_set,
            progress=progress,
        )  # fmt: skip
        drawing = replace(last[0], running=False)
        if drawing.done == drawing.total:
            MEASURED[request] = drawing
            if len(MEASURED) > MOST:
                MEASURED.pop(next(iter(MEASURED)))
        return drawing
    except Exception as error:
        return error


class LayersFigure(PatchedFigure):
    """A figure of the layers, built anew when there is more to show.

    columns: of its legend, for which a narrow page has less room; it is higher by the rows that this adds.
    """

    def __init__(self, name: str, columns: int) -> None:
        super().__init__(lambda x, y: None, name)
        self._columns = columns

    def show(self, figure: hv.Overlay) -> None:
        if self._columns:
            height = hv.Store.lookup_options("bokeh", figure, "plot").kwargs["height"] + 2 * LEGEND_ROW
            figure = figure.opts(hv.opts.Overlay(legend_cols=self._columns, height=height))
        self._rebuild(object(), figure, {"first": 0})


class LayersPart:
    """The parts of the page below the sweep, and their work in the lane."""

    def __init__(self, page: "LatencyView") -> None:
        self._page = page
        self._run, self._waiting = 0, ""
        self.drawing: LayersDrawing | None = None
        columns = {"bars": 2, "roofline": 1, "strip": 0}
        self.figures = {name: LayersFigure(f"latency-{name}", count) for name, count in columns.items()}
        self._texts = {
            name: Html("", sizing_mode="stretch_width", margin=(6, 10)) for name in (*columns, "progress", "table")
        }
        self._bar = pmui.LinearProgress(variant="determinate", value=0, margin=(2, 10), sizing_mode="stretch_width")
        self.measure = pmui.Button(label="Measure the layers", color="primary", size="small")
        self.stop = pmui.Button(
            label="Cancel", variant="outlined", size="small", disabled=True, description="cancel measuring the layers"
        )
        self.measure.on_click(self.start)
        self.stop.on_click(self.halt)
        self.controls, self.body = self._make_controls(), self._make_body()
        page.param.watch(lambda *_: self._tell(), ["model", "image", "upload", "down", "across", "part_seconds"])

    def request(self) -> LayersRequest:
        """What would be measured now."""
        page = self._page
        query = page.down / 100, page.across / 100
        return LayersRequest(page.model, page.image, page.upload, query, float(page.part_seconds))

    def start(self, *_: Any) -> None:
        """Measure the chosen model in place of what is measured now."""
        page, request = self._page, self.request()
        page.cancel("layers")
        self._run += 1
        if KERNELS.ready.is_set():
            self._submit(request, self._run)
        else:
            self._waiting = COMPILING
            self._tell()
            KERNELS.when_ready(partial(deliverer(), self._submit, request, self._run))

    def _submit(self, request: LayersRequest, run: int) -> None:
        if run != self._run:
            return  # stopped or replaced while the kernels were compiled
        self._waiting = WAITING
        self._tell()
        show = partial(self._show, run)
        publish = partial(deliverer(), show)
        self._page.submit(partial(time_layers, request, publish, self._drew), show, "layers")

    def _drew(self, drawing: LayersDrawing) -> bool:
        return self.drawing is drawing and self._page.pace.ready

    def halt(self, *_: Any) -> None:
        """Stop; what was measured stays."""
        self._page.cancel("layers")
        self._run, self._waiting = self._run + 1, ""
        if self.drawing is not None:
            self.drawing = replace(self.drawing, running=False)
            self._draw(whole=True)
        self._tell()

    def _show(self, run: int, drawing: LayersDrawing | Exception) -> None:
        if run != self._run:
            return
        if isinstance(drawing, Exception):
            self.halt()
            self._page.refuse(drawing)
            return
        self.drawing, self._waiting = drawing, ""
        self._draw(whole=not drawing.running)
        self._page.pace.sent()

    def open(self) -> None:
        """Show what this process has measured of what is chosen; else measure it if that takes a moment only."""
        known = MEASURED.get(self.request())
        if known is not None:
            self._show(self._run, known)
        elif self._page.model == self._page.param.model.default:
            self.start()
        else:
            self._tell()

    def _draw(self, whole: bool) -> None:
        """The bars, and, where `whole`, the other figures, which would take time from the next layer."""
        drawing = self.drawing
        if drawing is None:
            return
        result = drawing.result
        with pn.io.hold():
            self.figures["bars"].show(plots.layer_bars(result))
            self._texts["bars"].object = caption_html(plots.bars_caption(result))
            if whole:
                self.figures["roofline"].show(plots.roofline(result))
                self.figures["strip"].show(plots.affinity_strip(result, drawing.photograph))
                self._texts["roofline"].object = caption_html(plots.roofline_caption(result))
                self._texts["strip"].object = caption_html(plots.strip_caption(result))
            self._texts["table"].object = layers_table(result)
            self._figures_row.visible = True
            self._tell()

    def _tell(self) -> None:
        drawing = self.drawing
        running = drawing is not None and drawing.running
        changed = drawing is not None and drawing.request != self.request()
        self._texts["progress"].object = layers_line(drawing, self._waiting, changed)
        self._bar.value = 0 if self._waiting or drawing is None else 100 * drawing.done // drawing.total
        self.stop.disabled = not (running or self._waiting)

    # Parts

    def _make_controls(self) -> list[Any]:
        p = self._page.param
        picture = pmui.FileInput(
            label="Upload a picture", accept="image/*", max_file_size=64_000_000, variant="outlined", **WIDE
        )
        picture.param.watch(self._picture_given, "value")
        return [
            pmui.Select.from_param(p.model, label="Model", **WIDE),
            pmui.Select.from_param(p.image, label="Picture", **WIDE),
            picture,
            pn.Row(
                pmui.IntInput.from_param(p.down, label="Query, % down", **WIDE),
                pmui.IntInput.from_param(p.across, label="% across", **WIDE),
                sizing_mode="stretch_width",
            ),
            pmui.FloatInput.from_param(p.part_seconds, label="Seconds for a part of a layer", **WIDE),
        ]

    def _picture_given(self, event: param.parameterized.Event) -> None:
        if event.new:
            self._page.upload = event.new

    def _make_body(self) -> list[Any]:
        texts, wide = self._texts, {"sizing_mode": "stretch_width"}

        def part(grow: str, *names: str) -> pn.Column:
            objects = [each for name in names for each in (self.figures[name].pane, texts[name])]
            return pn.Column(*objects, styles={"flex": grow, "min-width": "0"}, **wide)

        self._figures_row = pn.FlexBox(
            part("1.3 1 440px", "bars", "strip"), part("1 1 380px", "roofline"), visible=False, **WRAP
        )
        return [
            pmui.Typography("Where a model spends its time", variant="h6", margin=(16, 10, 0, 10)),
            pn.Row(pn.Column(texts["progress"], self._bar, margin=0, **wide), self.measure, self.stop, **wide),
            self._figures_row,
            texts["table"],
        ]
