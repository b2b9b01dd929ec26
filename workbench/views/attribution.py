"""The Attribution page: which pixels move the score of a class or of a unit, by eight methods, in one panel or two."""

from collections.abc import Generator
from functools import partial
from typing import Any, Self

import panel as pn
import param

from workbench.analysis.attribution import BASELINES, METHODS, NOISES, SIGNS
from workbench.images import list_images, load_image
from workbench.names import unknown
from workbench.plots.attribution import caption

from .attribution_export import Downloads, python_code
from .attribution_figures import AttributionFigure, Look, UnitPicture, looks_of
from .attribution_layout import AttributionLayout
from .attribution_request import (
    AttributionDrawing,
    AttributionRequest,
    Progress,
    Source,
    compute,
    explains_unit,
    grid_of,
    options_of,
    steps,
)
from .attribution_tables import classes_table, heading, numbers_table, status_line
from .figure import Position
from .lane import Job
from .page import PageView
from .request import DISPLAY, same_place
from .state import KERNELS, deliverer, model_names, session_document, shared_model, when_loaded
from .tables import caption_html

NONE, SAME, USUAL = "none", "same", "usual"
ALL_CHANNELS = -1

#: What may be explained, in words.
TARGETS = {"the predicted class": "predicted", "a class": "class", "a unit of a layer": "unit"}

#: The choice that is left to the method, in words.
OWN = {"the method's own": USUAL}

_TITLES = {method.title: name for name, method in METHODS.items()}


class AttributionView(PageView):
    """One picture, one target, and one or two models or methods; see `PageView`."""

    LINK = (
        "image", "model", "method", "other", "other_method", "target", "number", "layer", "other_layer", "row", "col",
        "channel", "cam_layer", "other_cam_layer", "baseline", "steps", "window", "stride", "noise", "samples", "sigma",
        "seed", "sign", "outlier", "opacity",
    )  # fmt: skip

    image: Any = param.Selector(default="coffee", objects=["coffee"])
    upload = param.Bytes(default=None)
    model: Any = param.Selector(default="gspn_nano", objects=["gspn_nano"])
    method: Any = param.Selector(default="saliency", objects=_TITLES)
    other: Any = param.Selector(default="swin_nano", objects=["swin_nano"])
    other_method: Any = param.Selector(default=SAME, objects={"the same method": SAME} | _TITLES)

    target: Any = param.Selector(default="predicted", objects=TARGETS)
    number = param.Integer(default=0, bounds=(0, None))
    layer: Any = param.Selector(default="", objects=[""])
    other_layer: Any = param.Selector(default="", objects=[""])
    row = param.Integer(default=0, bounds=(0, None))
    col = param.Integer(default=0, bounds=(0, None))
    channel = param.Integer(default=ALL_CHANNELS, bounds=(ALL_CHANNELS, None))

    cam_layer: Any = param.Selector(default=USUAL, objects=OWN)
    other_cam_layer: Any = param.Selector(default=USUAL, objects=OWN)
    baseline: Any = param.Selector(default=USUAL, objects=OWN | {name: name for name in BASELINES})
    steps = param.Integer(default=64, bounds=(8, 512))
    window = param.Integer(default=0, bounds=(0, None))
    stride = param.Integer(default=0, bounds=(0, None))
    noise: Any = param.Selector(default="smoothgrad", objects={words: name for name, words in NOISES.items()})
    samples = param.Integer(default=32, bounds=(1, 512))
    sigma = param.Number(default=0.15, bounds=(0, 10), inclusive_bounds=(False, True))
    seed = param.Integer(default=0, bounds=(0, None))

    sign: Any = param.Selector(default="absolute_value", objects={words: name for name, words in SIGNS.items()})
    outlier = param.Number(default=2.0, bounds=(0, 100), step=0.5)
    opacity = param.Number(default=0.8, bounds=(0, 1), step=0.05)

    def __init__(self, **params: Any) -> None:
        models = model_names()
        self.param.model.objects = models
        self.param.other.objects = [NONE, *models]
        self.param.image.objects = list_images()
        for name, value in params.items():
            if isinstance(self.param[name], param.Selector) and not name.endswith("layer"):
                self._check(name, value)
        layers = {name: params.pop(name) for name in LAYERS if name in params}
        place = {name: params.pop(name) for name in ("row", "col") if name in params}
        super().__init__(**params)
        self._asked: AttributionRequest | None = None  # what the lane is at work on, or the last that it was asked for
        self._begun_on = ""  # the backend when it was asked
        self._set_layers("model", layers)
        self._set_layers("other", layers)
        self._grid = self._unit_grid()  # what row and col count on
        self.param.update(**{"row": self._grid[0] // 2, "col": self._grid[1] // 2} | place)
        self.picture = UnitPicture(self.query)
        self.figures = (
            AttributionFigure(self._pick, "attribution-a"),
            AttributionFigure(self._pick, "attribution-b"),
        )
        self.downloads = Downloads(self)
        self.layout = AttributionLayout(self)
        self.controls, self.body = self.layout.controls, self.layout.body
        self._try(self._open)
        self.param.watch(self._model_changed, ["model", "other"])
        self.param.watch(lambda *_: self._keep_place(), ["layer", "other_layer", "method", "other_method", "target"])
        self.param.watch(self._drop_upload, ["image"])
        self.param.watch(lambda *_: self.refresh(), [name for name in ("upload", *self.LINK) if name not in DISPLAYED])
        self.param.watch(lambda *_: self._redraw(), ["sign", "outlier"])
        self.param.watch(lambda *_: self._set_opacity(), ["opacity"])
        KERNELS.start()
        if session_document() is not None:
            pn.state.on_session_destroyed(lambda _: self.cancel())
        when_loaded(self._loaded)

    @classmethod
    def opened(cls, model: Any, image: Any, **state: Any) -> Self:
        return super().opened(model, image, **({"other": NONE} | state))

    # State

    def _check(self, name: str, value: Any) -> None:
        objects = self.param[name].objects
        known = list(objects.values() if isinstance(objects, dict) else objects)
        if value not in known:
            raise ValueError(unknown(name.removeprefix("other_"), str(value), known))

    def _set_layers(self, which: str, wanted: dict[str, str]) -> None:
        """Offer a model's layers; keep the chosen ones if it has them, otherwise take the last, and the usual map."""
        name, prefix = getattr(self, which), "" if which == "model" else "other_"
        layers = [] if name == NONE else list(shared_model(name).blocks())
        of_units = {layer: layer for layer in layers or [""]}
        of_maps = OWN | {layer: layer for layer in layers}
        for target, offered in ((f"{prefix}layer", of_units), (f"{prefix}cam_layer", of_maps)):
            known = list(offered.values())
            if name != NONE and target in wanted and wanted[target] not in known:
                raise ValueError(unknown("layer", wanted[target], known, of=name))
            current = wanted.get(target, getattr(self, target))
            self.param[target].objects = offered
            setattr(self, target, current if current in known else USUAL if offered is of_maps else known[-1])

    def _model_changed(self, *events: param.parameterized.Event) -> None:
        with param.parameterized.batch_call_watchers(self):
            for event in events:
                self._set_layers(event.name, {})
            self._keep_place()

    def chosen(self) -> list[tuple[str, str, str, str]]:
        """(model, method, layer of a unit, Grad-CAM's layer) of each panel, whether or not it needs the layers."""
        first = (self.model, self.method, self.layer, self.cam_layer)
        method = self.method if self.other_method == SAME else self.other_method
        second = (self.other, method, self.other_layer, self.other_cam_layer)
        return [first] if self.other == NONE else [first, second]

    def on_units(self) -> list[bool]:
        """For each panel whether it explains a unit."""
        return [explains_unit(method, self.target) for _, method, _, _ in self.chosen()]

    def _unit_grid(self) -> Position:
        """The grid that row and column count on: that of the first panel that explains a unit, else of the first."""
        chosen = self.chosen()
        model, _, layer, _ = chosen[self.on_units().index(True)] if any(self.on_units()) else chosen[0]
        return grid_of(model, layer)

    def _keep_place(self) -> None:
        """Keep the unit at the same place of the picture when the grid changes."""
        old, self._grid = self._grid, self._unit_grid()
        row, col = same_place((min(self.row, old[0] - 1), min(self.col, old[1] - 1)), old, self._grid)
        self.param.update(row=row, col=col)

    def _drop_upload(self, event: param.parameterized.Event) -> None:
        self.upload = None

    def upload_picture(self, data: bytes) -> None:
        """Look at an uploaded picture; one that cannot be read changes nothing."""
        try:
            load_image(data, size=DISPLAY)
        except ValueError as error:
            self.refuse(error)
            return
        self.upload = data

    def query(self, row: int, col: int) -> None:
        """Choose the unit."""
        self.param.update(row=row, col=col)

    def _pick(self, down: float, right: float) -> None:
        """Choose the unit at a place given as shares of the picture, where one is explained."""
        if any(self.on_units()):
            self.query(int(down * self._grid[0]), int(right * self._grid[1]))

    def move(self, down: int, right: int) -> None:
        """Move the unit by whole cells, stopping at the border."""
        rows, cols = self._grid
        self.query(min(max(self.row + down, 0), rows - 1), min(max(self.col + right, 0), cols - 1))

    # Computing

    def request(self) -> AttributionRequest:
        """What the page asks for now."""
        on_units = self.on_units()
        sources = tuple(self._source(*of, unit) for of, unit in zip(self.chosen(), on_units, strict=True))
        rows, cols = self._grid
        unit = (min(self.row, rows - 1), min(self.col, cols - 1)) if any(on_units) else None
        return AttributionRequest(sources, self.image, self.upload, unit)

    def _source(self, model: str, method: str, layer: str, cam_layer: str, on_unit: bool) -> Source:
        values = {name: getattr(self, name) for name in ("steps", "noise", "samples", "sigma", "seed")}
        # None is what the method has for this picture; 0 pixels and "usual" say so on the page.
        values |= {"window": self.window or None, "stride": self.stride or None}
        values |= {"baseline": None if self.baseline == USUAL else self.baseline}
        values |= {"cam_layer": None if cam_layer == USUAL else cam_layer}
        options = options_of(method, values)
        if not on_unit:
            return Source(model, method, self.number if self.target == "class" else None, options=options)
        channel = None if self.channel == ALL_CHANNELS else self.channel
        return Source(model, method, layer=layer, channel=channel, options=options)

    def _open(self) -> None:
        """Draw before the page is sent what is drawn fast; the rest follows, see `_loaded`."""
        self._show(None, compute(self.request().quick()))

    def _loaded(self) -> None:
        """What takes longer, once the browser shows the page."""
        if self._drawing is not None and self._drawing.request != self.request():
            self.refresh()
        KERNELS.when_ready(partial(deliverer(), self._warmed))

    def _warmed(self) -> None:
        """Draw again with the compiled kernels what is fast or not finished; say no more that they are missing."""
        self.layout.warming.object = ""
        drawing = self._drawing
        if drawing is None:
            return
        slow = any(panel.result.attrs["backend"] == "reference" for panel in drawing.panels)
        running = self._asked is not None and drawing.request is not self._asked
        # Where something else is asked for, that was cancelled or failed, and does not come back.
        quick = self.request() == drawing.request == drawing.request.quick()
        if (running and self._begun_on == "reference") or (slow and quick):
            self.refresh(anew=True)

    def refresh(self, anew: bool = False) -> None:
        """Ask the lane for the current picture, in the place of what it is at work on for this page.

        anew: also if that is the very same.
        """
        request = self.request()
        if request == self._asked and not anew:
            return
        self._asked, self._begun_on = request, KERNELS.backend
        self.layout.show_waiting()
        show = partial(self._show, request, anew=anew)
        self.submit(partial(_run, request), show, partly=partial(self._tell, request))

    def halt(self, *_: Any) -> None:
        """Stop computing; the last finished picture stays."""
        self.cancel()
        self._asked = None
        self.layout.show_idle("Cancelled; the last finished picture stays.")

    def _tell(self, request: AttributionRequest, progress: Progress) -> None:
        if request is self._asked:
            self.layout.show_progress(progress)

    def _show(
        self, request: AttributionRequest | None, outcome: AttributionDrawing | Exception, anew: bool = False
    ) -> None:
        """Show what was computed, unless something else has been asked for since; `anew` as for `refresh`."""
        if request is not self._asked:
            return
        if isinstance(outcome, Exception):
            self._fail(outcome)
            return
        if not (anew and self._drawing is not None and self._drawing.request == request):
            self._messages.visible = False  # the same picture again says nothing new about an input or a link
        self._drawing = outcome
        rows, cols = self._grid
        with pn.io.hold():
            self.query(min(self.row, rows - 1), min(self.col, cols - 1))  # what `request` took for a cell outside
            self._redraw()
            self.layout.show_idle("Finished.", 100)

    def _fail(self, error: Exception) -> None:
        super()._fail(error)
        if self._asked is not None:
            self._asked = None
            self.layout.show_idle("Not computed; the last finished picture stays.")

    # Drawing

    def _redraw(self) -> None:
        drawing, parts = self._drawing, self.layout
        if drawing is None:
            return
        looks = self.looks()
        units = [panel for panel in drawing.panels if panel.unit is not None]
        with pn.io.hold():
            self.picture.show_for(drawing.photograph, units[0] if units else None)
            for n, (column, figure) in enumerate(zip(parts.panels, self.figures, strict=True)):
                column.visible = n < len(drawing.panels)
                if column.visible:
                    figure.show(drawing.panels[n], drawing.photograph, looks[n], self.opacity)
                    parts.headings[n].object = heading(drawing.panels[n])
                    words = caption(drawing.panels[n].result, self.sign, self.outlier)
                    parts.captions[n].object = caption_html(f"{words} {looks[n].words()}")
            parts.classes.object = classes_table(drawing)
            parts.numbers.object = numbers_table(drawing)
            self._status.object = status_line(drawing)
            self._code.value = python_code(drawing)

    def _set_opacity(self) -> None:
        for figure in self.figures:
            figure.set_opacity(self.opacity)

    def looks(self) -> tuple[Look, ...]:
        """How the panels are shown."""
        return () if self._drawing is None else looks_of(self._drawing, self.sign, self.outlier)

    def shown(self) -> AttributionDrawing | None:
        """What is on the page; None before anything is."""
        return self._drawing


LAYERS = ("layer", "other_layer", "cam_layer", "other_cam_layer")

#: Parameters that change how a result is shown, and not the result.
DISPLAYED = ("sign", "outlier", "opacity")


def _run(request: AttributionRequest, job: Job) -> Generator[Progress, None, AttributionDrawing | Exception]:
    """`steps`, with a failure as its result: the page then has to stop waiting."""
    try:
        return (yield from steps(request, job))
    except Exception as error:
        return error
