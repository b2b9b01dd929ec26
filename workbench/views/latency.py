"""The Latency page: how the time of mixers and models grows with the picture, measured here and recorded elsewhere."""

from collections.abc import Generator
from dataclasses import replace
from functools import partial
from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
import torch

from workbench.analysis.latency import products_run
from workbench.analysis.latency_ops import OPERATORS
from workbench.analysis.latency_sweep import DTYPES, LatencySweepSpec
from workbench.images import list_images
from workbench.models import list_models
from workbench.names import unknown
from workbench.plots.latency import Recording, caption

from .lane import Job
from .latency_controls import make_controls
from .latency_export import Downloads, python_code
from .latency_figures import SweepFigure
from .latency_layers import LayersPart
from .latency_recorded import given_recording, label_of, recordings
from .latency_request import (
    DEFAULT_SIZES,
    MEASURED,
    QUICK,
    LatencyDrawing,
    ordered,
    parse_sizes,
    run_sweep,
)
from .latency_tables import (
    COMPILING,
    RATES,
    TABLE_NOTE,
    left_out,
    machine_line,
    numbers_table,
    progress_line,
    recorded_tables,
    status_line,
)
from .pace import Pace
from .page import PageView
from .state import KERNELS, deliverer, model_names, session_document, when_loaded
from .tables import caption_html
from .text import Html

#: How many recordings a page opens with.
OPENED = 2


class LatencyView(PageView):
    """Time against resolution, and where a model spends it; see `PageView`."""

    LINK = (
        "names", "models", "sizes", "backward", "batch", "channels", "dtype", "budget", "floors", "recorded",
        "model", "image", "down", "across", "part_seconds",
    )  # fmt: skip

    names = param.List(default=list(OPERATORS), item_type=str)
    models = param.List(default=[], item_type=str)
    sizes = param.String(default=DEFAULT_SIZES)
    backward: Any = param.Selector(default=False, objects={"forward": False, "and backward": True})
    batch = param.Integer(default=1, bounds=(1, 256))
    channels = param.Integer(default=64, bounds=(1, 2048))
    dtype: Any = param.Selector(default="float32", objects=list(DTYPES))
    budget = param.Number(default=0.5, bounds=(0.02, 60), step=0.1)
    floors = param.Boolean(default=False)
    recorded = param.List(default=[], item_type=str)
    given = param.Dict(default={})
    given_shown = param.List(default=[], item_type=str)
    model: Any = param.Selector(default="gspn_nano", objects=["gspn_nano"])
    image: Any = param.Selector(default="coffee", objects=["coffee"])
    upload = param.Bytes(default=None)
    down = param.Integer(default=50, bounds=(0, 100))
    across = param.Integer(default=50, bounds=(0, 100))
    part_seconds = param.Number(default=0.1, bounds=(0.01, 10), step=0.1)

    def __init__(self, **params: Any) -> None:
        self.recordings = recordings()
        params.setdefault("recorded", list(self.recordings.sweeps)[:OPENED])
        for kind, key, known in (
            ("operator", "names", OPERATORS),
            ("model", "models", list_models()),
            ("recording", "recorded", self.recordings.sweeps),
        ):
            for name in params.get(key, []):
                if name not in known:
                    raise ValueError(unknown(kind, name, known))
        self.param.model.objects, self.param.image.objects = model_names(), list_images()
        for name in ("model", "image"):
            known_names = self.param[name].objects
            if params.get(name, known_names[0]) not in known_names:
                raise ValueError(unknown(name, str(params[name]), known_names))
        super().__init__(**params)
        self._run = 0  # the sweep that is shown; what an older one still delivers is dropped
        self._waiting = ""  # what a sweep that was asked for waits for
        self.pace, self.figure = Pace(), SweepFigure()
        self.downloads = Downloads(self)
        self._texts = {
            name: Html("", sizing_mode="stretch_width", margin=(2, 10))
            for name in ("progress", "caption", "numbers", "left_out", "machine", "recorded")
        }
        self.layers = LayersPart(self)
        self.controls, self.body = make_controls(self), self._make_body()
        self._drawing: LatencyDrawing = self._known()
        self._try(self._redraw)
        self.param.watch(lambda *_: self._redraw(), ["names", "models", "floors", "recorded", "given_shown"])
        self.param.watch(lambda *_: self._tell(), ["sizes", "backward", "batch", "channels", "budget"])
        self.param.watch(lambda *_: self._check_dtype(), ["dtype"])
        self.param.watch(lambda *_: self.param.update(upload=None), ["image"])
        KERNELS.start()
        when_loaded(self._loaded)

    def _known(self) -> LatencyDrawing:
        """What this process has measured of what the page asks for; else nothing, of the first look."""
        known = MEASURED.find(self.request())
        return known or LatencyDrawing(QUICK, None, running=False)

    def _loaded(self) -> None:
        """Take a first look where nothing is known, once the browser shows the page."""
        if self._drawing.sweep is None:
            self._begin(QUICK)
        self.layers.open()
        if session_document() is not None:
            pn.state.on_session_destroyed(lambda context: self._cancel_all())  # nobody waits for the rest

    def _cancel_all(self) -> None:
        for owner in ("sweep", "layers", "dtype"):
            self.cancel(owner)

    # State

    def request(self) -> LatencySweepSpec:
        """What the page would measure now.

        Raises:
            ValueError: the sizes are no list of whole numbers.
        """
        names = ordered([*self.names, *self.models])
        settings: dict[str, Any] = {name: getattr(self, name) for name in ("batch", "channels", "dtype", "backward")}
        return LatencySweepSpec(names, parse_sizes(self.sizes), **settings, budget=float(self.budget))

    def shown(self) -> LatencyDrawing:
        """What is on the page."""
        return self._drawing

    def shown_recordings(self) -> list[Recording]:
        """The recordings that are drawn, the project's first."""
        known = self.recordings.sweeps | self.given
        return [Recording(label_of(name, known[name]), known[name]) for name in [*self.recorded, *self.given_shown]]

    def figure_names(self) -> list[str]:
        """What the figure has lines of: what was measured, and what is chosen and recorded."""
        chosen = ordered([*self.names, *self.models])
        if self._drawing.sweep is None:
            return list(chosen)
        recorded = {name for recording in self.shown_recordings() for name in recording.sweep["what"].values}
        return list(ordered([*self._drawing.request.names, *(name for name in chosen if name in recorded)]))

    def add_recording(self, data: bytes, file: str) -> None:
        """Draw the lines of a latency file that a person gives; one that is none changes nothing."""
        try:
            sweep = given_recording(data, file)
        except ValueError as error:
            self.refuse(error)
            return
        self._messages.visible = False
        shown = [*(name for name in self.given_shown if name != file), file]
        self.param.update(given=self.given | {file: sweep}, given_shown=shown)

    def _check_dtype(self) -> None:
        """Say at once if this machine cannot measure the chosen dtype."""
        dtype = self.dtype
        self._messages.visible = False
        self._tell()
        if dtype == "float32" or torch.cuda.is_available():
            return

        def told(runs: bool) -> None:
            if not runs and self.dtype == dtype:
                self.refuse(ValueError(
                    f"{dtype} cannot be measured on this machine: it has no GPU, and on its CPU matrix products of "
                    f"{dtype} end the process. Choose float32."
                ))  # fmt: skip

        self.submit(lambda job: products_run(dtype), told, "dtype")

    # Measuring

    def start(self, *_: Any) -> None:
        """Time what is chosen, in place of what is timed now."""
        try:
            request = self.request()
        except ValueError as error:
            self.refuse(error)
            return
        self._begin(request)

    def _begin(self, request: LatencySweepSpec) -> None:
        self.cancel("sweep")
        self._messages.visible = False
        self._run += 1
        self._waiting = RATES if KERNELS.ready.is_set() else COMPILING
        self._tell()
        if KERNELS.ready.is_set():
            self._submit(request, self._run)
        else:
            KERNELS.when_ready(partial(deliverer(), self._submit, request, self._run))

    def _submit(self, request: LatencySweepSpec, run: int) -> None:
        if run != self._run:
            return  # stopped or replaced while the kernels were compiled
        self._waiting = RATES
        self._tell()
        steps = partial(caught, request, self._drew)
        self.submit(steps, partial(self._show, run), "sweep", partly=partial(self._show, run))

    def _drew(self, drawing: LatencyDrawing) -> bool:
        """Whether the browser shows a drawing; asked in the lane."""
        return self._drawing is drawing and self.pace.ready

    def halt(self, *_: Any) -> None:
        """Stop; what was measured stays."""
        self.cancel("sweep")
        self._run += 1
        self._waiting = ""
        self._drawing = replace(self._drawing, running=False)
        self._redraw()

    def _show(self, run: int, drawing: LatencyDrawing | Exception) -> None:
        """Show what the lane gave, unless it was stopped or replaced."""
        if run != self._run:
            return
        if isinstance(drawing, Exception):
            self.halt()
            self._fail(drawing)
            return
        self._drawing, self._waiting = drawing, ""
        self._redraw()
        self.pace.sent()

    # Drawing

    def _redraw(self) -> None:
        drawing, shown, names = self._drawing, self.shown_recordings(), self.figure_names()
        with pn.io.hold():
            self.figure.show(names, drawing.sweep, shown, self.floors)
            self._set("caption", caption_html(caption(drawing.sweep, shown, self.floors)))
            note = caption_html(TABLE_NOTE) if drawing.sweep is not None else ""
            self._set("numbers", numbers_table(drawing.sweep, "measured on this machine") + note)
            self._set("left_out", left_out(drawing.sweep))
            self._set("machine", machine_line(drawing.sweep))
            self._set("recorded", recorded_tables(shown, names))
            self._tell()

    def _tell(self) -> None:
        """The words about how far it is."""
        drawing = self._drawing
        busy = drawing.running or bool(self._waiting)
        with pn.io.hold():
            self._set(
                "progress",
                progress_line(drawing, self._waiting, self._changed()),
            )
            self._bar.value = 0 if self._waiting else 100 * drawing.measured // drawing.planned
            self._stop.disabled = not busy
            if self._status.object != (line := status_line(drawing)):
                self._status.object = line
            self._code.value = self._python()

    def _changed(self) -> bool:
        """Whether the settings are others than those of what is shown."""
        try:
            return self.request() != self._drawing.request
        except ValueError:
            return True

    def _python(self) -> str:
        try:
            return python_code(self.request())
        except ValueError:  # sizes that Measure refuses
            return str(self._code.value)

    def _set(self, name: str, text: str) -> None:
        if self._texts[name].object != text:
            self._texts[name].object = text

    # Parts

    def _make_body(self) -> pn.Column:
        wide: dict[str, Any] = {"sizing_mode": "stretch_width"}
        self._bar = pmui.LinearProgress(variant="determinate", value=0, margin=(2, 10), **wide)
        self._measure = pmui.Button(label="Measure", color="primary", size="small")
        self._stop = pmui.Button(label="Cancel", variant="outlined", size="small", disabled=True)
        self._measure.on_click(self.start)
        self._stop.on_click(self.halt)
        texts = self._texts
        return pn.Column(
            self._messages,
            self._status,
            pn.Row(
                pn.Column(texts["progress"], self._bar, margin=0, **wide), self._measure, self._stop, **wide
            ),
            self.figure.pane,
            texts["caption"],
            texts["numbers"],
            texts["left_out"],
            texts["machine"],
            texts["recorded"],
            pn.Row(self.downloads.row, self.sharing()),
            *self.layers.body,
            *self.pace.widgets,
            **wide,
        )  # fmt: skip


def caught(
    request: LatencySweepSpec, drawn: Any, job: Job
) -> Generator[LatencyDrawing, None, LatencyDrawing | Exception]:
    """`run_sweep`, whose failure is its result, because the page then has to stop waiting."""
    try:
        return (yield from run_sweep(request, drawn, job))
    except Exception as error:
        return error
