"""The Stability page: set the condition of a propagation, and see a photograph explode, fade or be kept under it."""

from functools import cache, partial
from typing import Any, Self

import panel as pn
import panel_material_ui as pmui
import param
import xarray as xr

from kernels.propagation import DIRECTIONS, NORMALISATIONS
from workbench.analysis.latency import measure
from workbench.analysis.stability_latency import scan_latency
from workbench.analysis.stability_spec import COMPLEMENT, DTYPES, LONGEST, PRESETS, WIDEST, StabilitySpec
from workbench.images import list_images
from workbench.names import unknown
from workbench.plots.stability_curves import PANELS
from workbench.plots.stability_words import FORMATS, caption, curves_caption, weight_caption

from .directions_request import models_with_directions
from .lane import Job
from .pace import Pace
from .page import WRAP, PageView
from .stability_controls import make_controls
from .stability_export import Downloads, python_code
from .stability_figures import CurveFigure, PicturesFigure, WeightsFigure
from .stability_request import LayerGates, StabilityDrawing, StabilityRequest, draw_stability
from .stability_tables import numbers_table, scan_table, status_line, verdict_table
from .state import KERNELS, shared_model
from .tables import NOT_MEASURED, caption_html, latency_table
from .text import Html

#: What the preset's input says when the settings are those of none.
OWN = "own settings"

#: The channel whose gates' row sums are furthest from 1.
WORST = -1

#: The parameters that are fields of the Spec as they are.
FIELDS = ("normalisation", "gain", "noise", "neighbours", "cross", "length", "dtype", "seed", "direction", "image")

#: The parameters that make the laboratory's gates.
CONDITION = ("normalisation", "gain", "noise", "neighbours", "input_weight", "lam", "cross", "length", "chunk", "dtype")


class StabilityView(PageView):
    """One propagation, of made-up gates or of a layer's; see `PageView`."""

    LINK = ("source", *CONDITION, "seed", "direction", "image", "model", "layer", "channel")

    source: Any = param.Selector(default="synthetic", objects={"made up": "synthetic", "of a layer": "layer"})
    preset: Any = param.Selector(default="GSPN", objects=[*PRESETS, OWN])
    normalisation: Any = param.Selector(default="sigmoid", objects=list(NORMALISATIONS))
    gain = param.Number(default=1.0, bounds=(0, 4), softbounds=(0.5, 1.5), step=0.01)
    noise = param.Number(default=1.0, bounds=(0, 10), softbounds=(0, 4), step=0.05)
    neighbours: Any = param.Selector(default=3, objects={"three neighbours": 3, "one": 1})
    input_weight: Any = param.Selector(
        default="number", objects={"a number": "number", "1 - sum of the gates (SPN)": COMPLEMENT}
    )
    lam = param.Number(default=1.0, bounds=(-10, 10), softbounds=(-2, 2), step=0.05)
    cross = param.Integer(default=64, bounds=(2, WIDEST))
    length = param.Integer(default=64, bounds=(2, LONGEST))
    chunk = param.Integer(default=0, bounds=(0, LONGEST))
    dtype: Any = param.Selector(default="fp32", objects={FORMATS.get(name, name): name for name in DTYPES})
    seed = param.Integer(default=0, bounds=(0, 2**32 - 1))
    direction: Any = param.Selector(default="left_right", objects={d.replace("_", " to "): d for d in DIRECTIONS})
    image: Any = param.Selector(default="coffee", objects=["coffee"])
    upload = param.Bytes(default=None)
    model: Any = param.Selector(default="gspn_nano", objects=["gspn_nano"])
    layer: Any = param.Selector(default="", objects=[""])
    channel = param.Integer(default=WORST, bounds=(WORST, None))

    def __init__(self, **params: Any) -> None:
        self.param.image.objects = list_images()
        self.param.model.objects = models_with_directions()
        for name in ("image", "model"):
            known = self.param[name].objects
            if params.get(name, known[0]) not in known:
                raise ValueError(unknown(name, str(params[name]), known))
        wanted, preset = params.pop("layer", None), params.get("preset", OWN)
        super().__init__(**(_settings(preset) if preset in PRESETS else {}) | params)
        self._set_layers(wanted)
        self._name_preset()
        self._computing = self._behind = False
        self._pace = Pace()
        self.pictures, self.weights = PicturesFigure(), WeightsFigure()
        self.curves = {panel: CurveFigure(panel) for panel in PANELS}
        texts = ("caption", "weight_caption", "curves_caption", "numbers")
        self._texts = {name: Html("", sizing_mode="stretch_width", margin=(0, 10, 4, 10)) for name in texts}
        self._latency = Html(NOT_MEASURED, sizing_mode="stretch_width")
        self.downloads = Downloads(self)
        self.controls, self.body = make_controls(self), self._make_body()
        KERNELS.start()
        self._try(lambda: self._show(draw_stability(self.request())))  # the page opens on a finished picture
        self.param.watch(lambda *_: self._apply_preset(), ["preset"])
        self.param.watch(lambda *_: self._name_preset(), [*CONDITION])
        self.param.watch(lambda *_: self._model_changed(), ["model"])
        self.param.watch(lambda *_: self._drop_upload(), ["image"])
        drawn_from = [*(name for name in self.LINK if name != "model"), "upload"]
        self.param.watch(lambda *_: self.refresh(), drawn_from)
        self._pace.widgets[1].param.watch(lambda *_: self._catch_up(), "value")

    @classmethod
    def opened(cls, model: Any, image: Any, **state: Any) -> Self:
        """The page on the gates of a layer where one is asked for, or a model other than the usual; else made up."""
        asked = "layer" in state or model != cls.param.model.default
        return super().opened(model, image, **({"source": "layer" if asked else "synthetic"} | state))

    # State

    def _set_layers(self, wanted: str | None = None) -> None:
        """Offer the model's layers that propagate; keep the chosen name if it has it, otherwise take the first."""
        names = [layer.name for layer in shared_model(self.model).layers() if layer.kind == "propagation"]
        if wanted and wanted not in names:
            raise ValueError(unknown("layer", wanted, names, of=self.model))
        self.param.layer.objects = names
        self.layer = wanted or (self.layer if self.layer in names else names[0])

    def _model_changed(self) -> None:
        before = self.layer
        self._set_layers()
        if self.layer == before:
            self.refresh()

    def _apply_preset(self) -> None:
        if self.preset != OWN:
            self.param.update(**_settings(self.preset))

    def _name_preset(self) -> None:
        """Name the preset whose settings these are."""
        now = {name: getattr(self, name) for name in CONDITION}
        found = next((name for name in PRESETS if {n: _settings(name)[n] for n in CONDITION} == now), OWN)
        self.preset = found

    def _drop_upload(self) -> None:
        self.upload = None

    def uploaded(self, event: param.parameterized.Event) -> None:
        """Show a picture that was uploaded."""
        if event.new:
            self.upload = event.new

    def request(self) -> StabilityRequest:
        """What the page asks for now.

        Raises:
            ValueError: a setting that the laboratory refuses.
        """
        fields = {name: getattr(self, name) for name in FIELDS}
        lam = COMPLEMENT if self.input_weight == COMPLEMENT else self.lam
        spec = StabilitySpec(**fields, lam=lam, chunk=self.chunk or None)
        gates = None
        if self.source == "layer":
            gates = LayerGates(self.model, self.layer, self.direction, None if self.channel == WORST else self.channel)
        return StabilityRequest(spec, gates, self.upload)

    def shown(self) -> StabilityDrawing | None:
        """What the page shows, None before anything is."""
        return self._drawing

    # Drawing

    def refresh(self) -> None:
        """Ask for the current picture; while one is computed or drawn, only remember that there is a newer request."""
        if self._computing or not self._pace.ready:
            self._behind = True
            return
        self._behind = False
        try:
            request = self.request()
        except ValueError as error:
            self._fail(error)
            return
        self._computing = True
        self.submit(partial(draw_stability, request), self._show)

    def _catch_up(self) -> None:
        if self._behind:
            self.refresh()

    def _fail(self, error: Exception) -> None:
        super()._fail(error)
        self._computing = False
        self._catch_up()

    def _show(self, drawing: StabilityDrawing) -> None:
        self._drawing, self._computing = drawing, False
        result = drawing.result
        with pn.io.hold():
            self._messages.visible = False
            self.pictures.show(result)
            self.weights.show(result)
            for figure in self.curves.values():
                figure.show(result)
            self._show_words(result)
            self._pace.sent()
        if self._pace.ready:  # nobody answers outside of a served session
            self._catch_up()

    def _show_words(self, result: xr.Dataset) -> None:
        words = {
            "caption": caption_html(caption(result)),
            "weight_caption": caption_html(weight_caption(result)),
            "curves_caption": caption_html(curves_caption(result)),
            "numbers": verdict_table(result) + numbers_table(result),
        }
        for name, text in words.items():
            if self._texts[name].object != text:
                self._texts[name].object = text
        self._status.object = status_line(result)
        self._code.value = self.code()

    # Latency

    def measure_now(self, *_: Any) -> None:
        """Time the scan of the laboratory, or the layer and its model, on this machine, in the lane."""
        request = self.request()
        self._latency.object = "<p role='status'>Measuring: the lane is reserved for a few seconds…</p>"

        def run(job: Job) -> str:
            if request.layer is None:
                return scan_table(scan_latency(request.spec))
            model = shared_model(request.layer.model)
            model.set_backend(KERNELS.backend)
            return latency_table([measure(model, request.picture(model.input_size), request.layer.layer)])

        self.submit(run, self._show_latency, owner="latency")

    def _show_latency(self, table: str) -> None:
        self._latency.object = table

    # Sharing

    def code(self) -> str:
        """Python that computes what is drawn."""
        return "" if self._drawing is None else python_code(self._drawing)

    # Parts

    def _make_body(self) -> pn.Column:
        measure_button = pmui.Button(label="Measure on this machine now", variant="outlined", size="small")
        measure_button.on_click(self.measure_now)

        def part(grow: str, *objects: Any) -> pn.Column:
            return pn.Column(*objects, sizing_mode="stretch_width", styles={"flex": grow, "min-width": "0"})

        texts, panels = self._texts, [part("1 1 300px", figure.pane) for figure in self.curves.values()]
        return pn.Column(
            self._messages,
            self._status,
            pn.FlexBox(
                part("1.6 1 480px", self.pictures.pane, texts["caption"]),
                part("1 1 300px", self.weights.pane, texts["weight_caption"]),
                **WRAP,
            ),
            pn.FlexBox(
                part("1 1 290px", texts["numbers"], self.sharing(), self.downloads.row),
                part("2.2 1 560px", pn.FlexBox(*panels, **WRAP)),
                **WRAP,
            ),
            texts["curves_caption"],
            pn.Row(pmui.Typography("Cost of the scan on this machine", variant="h6"), measure_button),
            self._latency,
            *self._pace.widgets,
            sizing_mode="stretch_width",
        )


@cache
def _settings(preset: str) -> dict[str, Any]:
    """What a preset sets, as parameters of the page."""
    spec = StabilitySpec(**PRESETS[preset])  # type: ignore[arg-type]
    settings = {name: getattr(spec, name) for name in CONDITION if name in FIELDS}
    number = not isinstance(spec.lam, str)
    lam = {"input_weight": "number", "lam": spec.lam} if number else {"input_weight": COMPLEMENT, "lam": 1.0}
    return settings | lam | {"chunk": spec.chunk or 0}
