"""The Affinity page: click a pixel, see what a layer lets it read, for one model or two side by side."""

from functools import partial
from typing import Any, Self

import panel as pn
import panel_material_ui as pmui
import param
import xarray as xr

from workbench.analysis.affinity import AffinitySpec
from workbench.analysis.latency import measure
from workbench.images import list_images
from workbench.names import unknown
from workbench.operators import REDUCTIONS
from workbench.plots.affinity import caption, colour_range, is_signed, over_channels

from .figure import MosaicFigure, PhotographFigure
from .lane import Job
from .page import WIDE, WRAP, PageView, arrows
from .request import Cells, Drawing, Request, cells_of, draw, moved, picture
from .script import python_of
from .state import KERNELS, deliverer, model_names, shared_model, when_loaded
from .tables import NOT_MEASURED, WARMING, caption_html, latency_table, numbers_table, status_line
from .text import Html

NONE = "none"
ALL_CHANNELS = -1


class AffinityView(PageView):
    """One query in one model or two; see `PageView`."""

    LINK = ("image", "model", "layer", "other", "other_layer", "row", "col", "side", "reduce", "channel", "scale")

    image: Any = param.Selector(default="coffee", objects=["coffee"])
    upload = param.Bytes(default=None)
    model: Any = param.Selector(default="gspn_nano", objects=["gspn_nano"])
    layer: Any = param.Selector(default="", objects=[""])
    other: Any = param.Selector(default="swin_nano", objects=["swin_nano"])
    other_layer: Any = param.Selector(default="", objects=[""])
    row = param.Integer(default=0, bounds=(0, None))
    col = param.Integer(default=0, bounds=(0, None))
    side: Any = param.Selector(default="reads", objects={"what it reads": "reads", "where it is heard": "heard"})
    reduce: Any = param.Selector(default="mean_abs", objects={words: name for name, (words, _) in REDUCTIONS.items()})
    channel = param.Integer(default=ALL_CHANNELS, bounds=(ALL_CHANNELS, None))
    scale: Any = param.Selector(default="log", objects={"logarithmic": "log", "linear": "linear"})
    opacity = param.Number(default=0.85, bounds=(0, 1), step=0.05)

    def __init__(self, **params: Any) -> None:
        models = model_names()
        self.param.model.objects = models
        self.param.other.objects = [NONE, *models]
        self.param.image.objects = list_images()
        for name, kind in (("model", "model"), ("other", "model"), ("image", "image")):
            known = self.param[name].objects
            if params.get(name, known[0]) not in known:
                raise ValueError(unknown(kind, str(params[name]), known))
        wanted = {name: params.pop(name) for name in ("row", "col", "layer", "other_layer") if name in params}
        super().__init__(**params)
        self.photograph = PhotographFigure(self.query)
        self.figures = (MosaicFigure(self.query, "mosaic-a"), MosaicFigure(self._query_other, "mosaic-b"))
        self._numbers = Html("", sizing_mode="stretch_width")
        self._warming = Html(WARMING, sizing_mode="stretch_width")
        self._captions = tuple(Html("", sizing_mode="stretch_width", margin=(0, 10, 4, 10)) for _ in self.figures)
        grow = {"flex": "1 1 520px", "min-width": "0"}
        self._panels = tuple(
            pn.Column(figure.pane, caption_, sizing_mode="stretch_width", styles=grow)
            for figure, caption_ in zip(self.figures, self._captions, strict=True)
        )
        self._latency = Html(NOT_MEASURED, sizing_mode="stretch_width")
        self._set_layers("model", wanted.get("layer"))
        self._set_layers("other", wanted.get("other_layer"))
        self._placed_on = self._cells()  # the cells that row and col count on
        rows, cols = self._placed_on.covered
        self.param.update(row=wanted.get("row", rows * 9 // 20), col=wanted.get("col", cols * 11 // 20))
        self.controls, self.body = self._make_controls(), self._make_body()
        self.param.watch(self._model_changed, ["model", "other"])
        self.param.watch(self._layer_changed, ["layer"])
        self.param.watch(self._drop_upload, ["image"])
        drawn_from = ["model", "layer", "other", "other_layer", "image", "upload", "row", "col", "side", "reduce"]
        self.param.watch(lambda *_: self.refresh(), [*drawn_from, "channel"])
        self.param.watch(lambda *_: self._redraw(), ["scale"])
        self.param.watch(lambda *_: self._set_opacity(), ["opacity"])
        KERNELS.start()
        self._try(lambda: self._show(draw(self.request())))  # the page opens on a finished picture
        when_loaded(partial(KERNELS.when_ready, partial(deliverer(), self._warmed)))

    @classmethod
    def opened(cls, model: Any, image: Any, **state: Any) -> Self:
        return super().opened(model, image, **({"other": NONE} | state))

    # State

    def _cells(self) -> Cells:
        return cells_of(self.model, self.layer)

    def _set_layers(self, which: str, wanted: str | None = None) -> None:
        """Offer a model's layers; keep the chosen name if it has it, otherwise take `_usual_layer`."""
        target = "layer" if which == "model" else "other_layer"
        name = getattr(self, which)
        layers = [""] if name == NONE else [layer.name for layer in shared_model(name).layers()]
        self.param[target].objects = layers
        if wanted is not None and wanted not in layers:
            raise ValueError(unknown("layer", wanted, layers, of=name))
        current = wanted or getattr(self, target)
        setattr(self, target, current if current in layers else "" if name == NONE else _usual_layer(name))

    def _model_changed(self, *events: param.parameterized.Event) -> None:
        with param.parameterized.batch_call_watchers(self):
            for event in events:
                self._set_layers(event.name)
            self._keep_place()

    def _layer_changed(self, event: param.parameterized.Event) -> None:
        self._keep_place()

    def _keep_place(self) -> None:
        """Keep the query at the same place of the picture when the grid changes."""
        old, self._placed_on = self._placed_on, self._cells()
        row, col = moved((min(self.row, old.grid[0] - 1), min(self.col, old.grid[1] - 1)), old, self._placed_on)
        self.param.update(row=row, col=col)

    def _drop_upload(self, event: param.parameterized.Event) -> None:
        self.upload = None

    def query(self, row: int, col: int) -> None:
        """Choose the query on the first model's grid."""
        self.param.update(row=row, col=col)

    def _query_other(self, row: int, col: int) -> None:
        if self._drawing is not None and len(self._drawing.results) > 1:
            self.query(*moved((row, col), self._drawing.cells[1], self._cells()))

    def move(self, down: int, right: int) -> None:
        """Move the query by whole cells, stopping at the border."""
        rows, cols = self._cells().grid
        self.query(min(max(self.row + down, 0), rows - 1), min(max(self.col + right, 0), cols - 1))

    # Drawing

    def request(self) -> Request:
        """What the page asks for now."""
        sources = [(self.model, self.layer)] + ([] if self.other == NONE else [(self.other, self.other_layer)])
        rows, cols = self._cells().grid
        position = min(self.row, rows - 1), min(self.col, cols - 1)
        channel = None if self.channel == ALL_CHANNELS else self.channel
        spec = AffinitySpec(position, self.side, channel, self.reduce)
        return Request(tuple(sources), self.image, self.upload, position, spec)

    def refresh(self) -> None:
        """Ask the lane for the current picture; an older request of this page that still waits is dropped."""
        self.submit(partial(draw, self.request()), self._show)

    def _warmed(self) -> None:
        """Draw again with the compiled kernels, and say no more that they are missing."""
        self._warming.object = ""
        if self._drawing is not None and any(r.attrs["backend"] == "reference" for r in self._drawing.results):
            self.refresh()

    def _fail(self, error: Exception) -> None:
        super()._fail(error)
        if self.upload is not None and self._drawing is not None:
            with param.parameterized.discard_events(self):
                self.upload = None

    def _show(self, drawing: Drawing) -> None:
        self._drawing = drawing
        self._messages.visible = False
        self._redraw()

    def _redraw(self) -> None:
        drawing = self._drawing
        if drawing is None:
            return
        results, cells = list(drawing.results), drawing.cells[0]
        with pn.io.hold():
            self.photograph.show(drawing.photograph, cells.grid, drawing.request.position, cells.covered)
            for i, figure in enumerate(self.figures):
                self._panels[i].visible = i < len(results)
                if i < len(results):
                    alike = [r for r in results if over_channels(r) == over_channels(results[i])]
                    limits = colour_range(alike, self.scale)
                    scale = "linear" if limits[0] < 0 else self.scale
                    figure.show(results[i], drawing.photograph, limits, scale, self.opacity)
                    self._captions[i].object = caption_html(caption(results[i], scale, is_signed(results[i])))
            self._numbers.object = numbers_table(results)
            self._status.object = status_line(results)
            self._code.value = self.code()

    def _set_opacity(self) -> None:
        for figure in self.figures:
            figure.set_opacity(self.opacity)

    # Latency

    def measure_now(self, *_: Any) -> None:
        """Time the shown layers and their models on this machine, in the lane, on the picture shown."""
        request = self.request()
        self._latency.object = "<p role='status'>Measuring: the lane is reserved for a few seconds…</p>"

        def run(job: Job) -> list[xr.Dataset]:
            found = []
            for name, layer in request.sources:
                model = shared_model(name)
                model.set_backend(KERNELS.backend)
                found.append(measure(model, picture(request, model.input_size), layer))
            return found

        self.submit(run, self._show_latency, owner="latency")

    def _show_latency(self, results: list[xr.Dataset]) -> None:
        self._latency.object = latency_table(results)

    # Sharing

    def code(self) -> str:
        """Python that computes the maps that are drawn."""
        return python_of(self.request(), self._drawing)

    # Parts

    def _make_controls(self) -> list[Any]:
        """The controls, in the order in which the keyboard reaches them."""
        p = self.param
        upload = pmui.FileInput(
            label="Upload a picture", accept="image/*", max_file_size=64_000_000, variant="outlined", **WIDE
        )
        upload.param.watch(self._uploaded, "value")
        return [
            pmui.Select.from_param(p.image, label="Picture", **WIDE),
            upload,
            pmui.Select.from_param(p.model, label="Model", **WIDE),
            pmui.DiscreteSlider.from_param(p.layer, label="Layer", **WIDE),
            pmui.Select.from_param(p.other, label="Beside it", **WIDE),
            pmui.DiscreteSlider.from_param(p.other_layer, label="Its layer", **WIDE),
            pmui.RadioButtonGroup.from_param(p.side, label="Show", **WIDE),
            pn.Row(
                pmui.IntInput.from_param(p.row, label="Row", **WIDE),
                pmui.IntInput.from_param(p.col, label="Column", **WIDE),
                sizing_mode="stretch_width",
            ),
            arrows(self.move, "the query"),
            pmui.Select.from_param(p.reduce, label="Channels or heads", **WIDE),
            pmui.IntInput.from_param(p.channel, label="One channel (-1: all)", **WIDE),
            pmui.Select.from_param(p.scale, label="Colours", **WIDE),
            pmui.FloatSlider.from_param(p.opacity, label="Opacity of the map", **WIDE),
        ]

    def _make_body(self) -> pn.Column:
        measure_button = pmui.Button(label="Measure on this machine now", variant="outlined", size="small")
        measure_button.on_click(self.measure_now)
        left = pn.Column(
            self.photograph.pane, self._numbers, self._warming, self.sharing(),
            styles={"flex": "0 1 320px", "min-width": "260px"},
        )  # fmt: skip
        right = pn.FlexBox(*self._panels, sizing_mode="stretch_width", styles={"flex": "1 1 560px", "min-width": "0"})
        return pn.Column(
            self._messages,
            self._status,
            pn.FlexBox(left, right, **WRAP),
            pn.Row(pmui.Typography("Cost on this machine", variant="h6"), measure_button),
            self._latency,
            sizing_mode="stretch_width",
        )

    def _uploaded(self, event: param.parameterized.Event) -> None:
        if event.new:
            self.upload = event.new


def _usual_layer(model: str) -> str:
    """The last layer of a model's first stage that mixes positions."""
    layers = shared_model(model).layers()
    first = layers[0].name.split(".")[0]
    return [layer.name for layer in layers if layer.name.split(".")[0] == first and layer.kind != "channel"][-1]
