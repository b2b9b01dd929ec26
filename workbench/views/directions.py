"""The Directions page: the front of every direction of a layer, line by line, from a source or towards a query."""

from functools import partial
from typing import Any, Self

import panel as pn
import panel_material_ui as pmui
import param
import xarray as xr

from kernels.propagation import DIRECTIONS
from workbench.analysis.directions import DirectionsSpec
from workbench.analysis.latency import measure
from workbench.images import list_images
from workbench.names import unknown
from workbench.operators import REDUCTIONS
from workbench.plots.directions import MERGED, caption, colour_range, words
from workbench.plots.directions_gates import gate_caption

from .directions_export import Downloads, python_code
from .directions_figures import FrontFigure, GateFigure
from .directions_player import FramePlayer
from .directions_request import (
    DirectionsDrawing,
    DirectionsRequest,
    draw,
    grid_of,
    layers_of,
    models_with_directions,
    usual_layer,
)
from .directions_tables import status_line, weights_table
from .figure import PhotographFigure
from .lane import Job
from .page import WIDE, WRAP, PageView, arrows, named
from .request import same_place
from .state import KERNELS, deliverer, shared_image, shared_model, when_loaded
from .tables import NOT_MEASURED, WARMING, caption_html, latency_table
from .text import Html

ALL_CHANNELS = -1
SIDES = {"from a source": "source", "towards a query": "query"}
QUANTITIES = {"what is added to the output": "contribution", "the hidden state h alone": "hidden"}
NAMES = {words(name): name for name in DIRECTIONS}


class DirectionsView(PageView):
    """One position of one layer; see `PageView`."""

    LINK = (
        "image", "model", "layer", "row", "col", "side", "quantity", "reduce", "channel", "scale", "trail", "large",
        "gates", "frame", "speed", "loop",
    )  # fmt: skip

    image: Any = param.Selector(default="coffee", objects=["coffee"])
    upload = param.Bytes(default=None)
    model: Any = param.Selector(default="gspn_nano", objects=["gspn_nano"])
    layer: Any = param.Selector(default="", objects=[""])
    row = param.Integer(default=0, bounds=(0, None))
    col = param.Integer(default=0, bounds=(0, None))
    side: Any = param.Selector(default="source", objects=SIDES)
    quantity: Any = param.Selector(default="contribution", objects=QUANTITIES)
    reduce: Any = param.Selector(default="mean_abs", objects={text: name for name, (text, _) in REDUCTIONS.items()})
    channel = param.Integer(default=ALL_CHANNELS, bounds=(ALL_CHANNELS, None))
    scale: Any = param.Selector(default="log", objects={"logarithmic": "log", "linear": "linear"})
    opacity = param.Number(default=0.85, bounds=(0, 1), step=0.05)
    large: Any = param.Selector(default=MERGED, objects={"all directions merged": MERGED} | NAMES)
    gates: Any = param.Selector(default=DIRECTIONS[0], objects=NAMES)
    frame = param.Integer(default=0, bounds=(0, None))
    speed = param.Integer(default=15, bounds=(1, 30))
    loop = param.Boolean(default=True)
    trail = param.Boolean(default=True)

    def __init__(self, **params: Any) -> None:
        models = models_with_directions()
        self.param.model.objects = models
        self.param.image.objects = list_images()
        for name, known in (("model", models), ("image", list_images())):
            if params.get(name, known[0]) not in known:
                kind = "model with directions" if name == "model" else name
                raise ValueError(unknown(kind, str(params[name]), known))
        wanted = {name: params.pop(name) for name in ("row", "col", "layer") if name in params}
        super().__init__(**params)
        self.photograph = PhotographFigure(self.query)
        self.fronts, self.gate_figure = FrontFigure(self.query, "fronts"), GateFigure("gates")
        wide: dict[str, Any] = {"sizing_mode": "stretch_width"}
        self._caption, self._gate_caption = (Html("", margin=(0, 10, 4, 10), **wide) for _ in range(2))
        self._numbers, self._latency = Html("", **wide), Html(NOT_MEASURED, **wide)
        self._warming = Html(WARMING, **wide)
        self.player, self.downloads = FramePlayer(self), Downloads(self)
        self._set_layers(wanted.get("layer"))
        self._placed_on = self._grid()  # the cells that row and col count on
        rows, cols = self._placed_on
        self.param.update(row=wanted.get("row", rows * 9 // 20), col=wanted.get("col", cols * 11 // 20))
        self.controls, self.body = self._make_controls(), self._make_body()
        self.param.watch(self._model_changed, ["model"])
        self.param.watch(lambda *_: self._keep_place(), ["layer"])
        self.param.watch(lambda *_: self.param.update(upload=None), ["image"])
        drawn_from = ["model", "layer", "image", "upload", "row", "col", "side", "quantity", "reduce", "channel"]
        self.param.watch(lambda *_: self.refresh(), drawn_from)
        self.param.watch(lambda *_: self._redraw(), ["scale", "large", "gates", "trail"])
        self.param.watch(lambda *_: self.fronts.set_opacity(self.opacity), ["opacity"])
        self.param.watch(lambda *_: self._tell(), ["frame"])
        KERNELS.start()
        self._try(lambda: self._open(draw(self.request()), "frame" in params))  # on a finished picture
        when_loaded(partial(KERNELS.when_ready, partial(deliverer(), self._warmed)))

    @classmethod
    def opened(cls, model: Any, image: Any, **state: Any) -> Self:
        name = named(model)
        if name not in models_with_directions():
            raise ValueError(
                f"{name} has no directions: the page shows models that propagate line by line, such as gspn_nano."
            )
        return super().opened(name, image, **state)

    # State

    def _grid(self) -> tuple[int, int]:
        return grid_of(self.model, self.layer)

    def _set_layers(self, wanted: str | None = None) -> None:
        """Offer the model's layers that have directions; keep the chosen one if it has it, else take `usual_layer`.

        Raises:
            ValueError: it has no layer of the wanted name.
        """
        layers = layers_of(self.model)
        self.param.layer.objects = layers
        if wanted is not None and wanted not in layers:
            raise ValueError(unknown("layer with directions", wanted, layers, of=self.model))
        current = wanted or self.layer
        self.layer = current if current in layers else usual_layer(self.model)

    def _model_changed(self, event: param.parameterized.Event) -> None:
        with param.parameterized.batch_call_watchers(self):
            self._set_layers()
            self._keep_place()

    def _keep_place(self) -> None:
        """Keep the position at the same place of the picture when the grid changes."""
        old, self._placed_on = self._placed_on, self._grid()
        row, col = same_place((min(self.row, old[0] - 1), min(self.col, old[1] - 1)), old, self._placed_on)
        self.param.update(row=row, col=col)

    def query(self, row: int, col: int) -> None:
        """Choose the position."""
        self.param.update(row=row, col=col)

    def move(self, down: int, right: int) -> None:
        """Move the position by whole cells, stopping at the border."""
        rows, cols = self._grid()
        self.query(min(max(self.row + down, 0), rows - 1), min(max(self.col + right, 0), cols - 1))

    # Drawing

    def request(self) -> DirectionsRequest:
        """What the page asks for now."""
        rows, cols = self._grid()
        position = min(self.row, rows - 1), min(self.col, cols - 1)
        channel = None if self.channel == ALL_CHANNELS else self.channel
        spec = DirectionsSpec(position, self.side == "query", channel, self.reduce, self.quantity)
        return DirectionsRequest(self.model, self.layer, self.image, self.upload, spec)

    def shown(self) -> DirectionsDrawing | None:
        """What is on the page; None before anything is."""
        return self._drawing

    def refresh(self) -> None:
        """Ask the lane for the current picture; an older request of this page that still waits is dropped."""
        self.submit(partial(draw, self.request()), self._show)

    def _warmed(self) -> None:
        """Draw again with the compiled kernels, and say no more that they are missing."""
        self._warming.object = ""
        if self._drawing is not None and self._drawing.result.attrs["backend"] == "reference":
            self.refresh()

    def _fail(self, error: Exception) -> None:
        super()._fail(error)
        if self.upload is not None and self._drawing is not None:
            with param.parameterized.discard_events(self):
                self.upload = None

    def _show(self, drawing: DirectionsDrawing) -> None:
        self._drawing = drawing
        self._messages.visible = False
        self._redraw()

    def _open(self, drawing: DirectionsDrawing, framed: bool) -> None:
        """Show the first picture, half-way through unless a frame was asked for."""
        if not framed:
            self.frame = drawing.result.sizes["step"] // 2
        self._show(drawing)

    def _redraw(self) -> None:
        drawing = self._drawing
        if drawing is None:
            return
        result, spec = drawing.result, drawing.request.spec
        limits = colour_range(result, self.scale)
        direction = [*result["direction"].values].index(self.gates)
        with pn.io.hold():
            self.player.follow(result.sizes["step"])
            self.photograph.show(drawing.photograph, result.attrs["grid"], spec.position, result.attrs["grid"])
            self.fronts.show(
                result,
                drawing.photograph,
                self._frame(result),
                self.trail,
                limits,
                self.scale,
                self.opacity,
                self.large,
            )
            self.gate_figure.show(result, direction, drawing.photograph)
            self._caption.object = caption_html(caption(result, self.scale))
            self._gate_caption.object = caption_html(gate_caption(result, direction))
            self._numbers.object = weights_table(result)
            self._tell()
            self._code.value = python_code(self, drawing)

    def _frame(self, result: xr.Dataset) -> int:
        return min(self.frame, result.sizes["step"] - 1)

    def _tell(self) -> None:
        """The sentence of what is shown; the browser tells the frame when a movie stops, not while it plays."""
        if self._drawing is not None:
            result = self._drawing.result
            self._status.object = status_line(result, self._frame(result))

    # Latency

    def measure_now(self, *_: Any) -> None:
        """Time the shown layer and its model on this machine, in the lane, on the picture shown."""
        request = self.request()
        self._latency.object = "<p role='status'>Measuring: the lane is reserved for a few seconds…</p>"

        def run(job: Job) -> list[xr.Dataset]:
            model = shared_model(request.model)
            model.set_backend(KERNELS.backend)
            return [measure(model, shared_image(request.source, model.input_size), request.layer)]

        self.submit(run, self._show_latency, owner="latency")

    def _show_latency(self, results: list[xr.Dataset]) -> None:
        self._latency.object = latency_table(results)

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
            pmui.RadioButtonGroup.from_param(p.side, label="Front", **WIDE),
            pn.Row(
                pmui.IntInput.from_param(p.row, label="Row", **WIDE),
                pmui.IntInput.from_param(p.col, label="Column", **WIDE),
                sizing_mode="stretch_width",
            ),
            arrows(self.move, "the position"),
            pmui.Select.from_param(p.quantity, label="Show", **WIDE),
            pmui.Select.from_param(p.large, label="Large panel", **WIDE),
            pmui.Select.from_param(p.gates, label="Gates of", **WIDE),
            pmui.Select.from_param(p.reduce, label="Channels", **WIDE),
            pmui.IntInput.from_param(p.channel, label="One channel (-1: all)", **WIDE),
            pmui.Select.from_param(p.scale, label="Colours", **WIDE),
            pmui.FloatSlider.from_param(p.opacity, label="Opacity of the fronts", **WIDE),
        ]

    def _make_body(self) -> pn.Column:
        button = pmui.Button(label="Measure on this machine now", variant="outlined", size="small")
        button.on_click(self.measure_now)
        wide: dict[str, Any] = {"sizing_mode": "stretch_width"}
        left = pn.Column(
            self.photograph.pane, self._warming, self.sharing(), self.downloads.row,
            styles={"flex": "0 1 280px", "min-width": "220px"},
        )  # fmt: skip
        right = pn.Column(
            self.fronts.pane, self.player.row, self._caption,
            **wide, styles={"flex": "1 1 520px", "min-width": "0", "max-width": "1100px"},
        )  # fmt: skip
        gates = pn.Column(
            self.gate_figure.pane, self._gate_caption,
            **wide, styles={"flex": "1 1 380px", "min-width": "0", "max-width": "640px"},
        )  # fmt: skip
        numbers = pn.Column(
            self._numbers, pn.Row(pmui.Typography("Cost on this machine", variant="h6"), button), self._latency,
            **wide, styles={"flex": "1 1 480px", "min-width": "0"},
        )  # fmt: skip
        return pn.Column(
            self._messages, self._status, pn.FlexBox(left, right, **WRAP), pn.FlexBox(gates, numbers, **WRAP), **wide
        )

    def _uploaded(self, event: param.parameterized.Event) -> None:
        if event.new:
            self.upload = event.new
