"""The Receptive field page: which pixels of the picture move a unit of a layer, for up to four models side by side."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Self

import panel as pn
import param

from workbench.analysis.receptive_field import CHANNELS, GRADIENTS, resolve
from workbench.images import list_images, load_image
from workbench.models.base import VisionModel
from workbench.names import unknown
from workbench.plots import receptive_field as maps

from .field_choices import COMPARISONS, read_checkpoint
from .field_export import Downloads, python_code
from .field_figures import DifferenceFigure, MapFigure, ranked_curves, square_curves
from .field_layout import MEASURE, FieldLayout
from .field_request import (
    CROPS,
    LARGEST_SIDE,
    MOST_IMAGES,
    MOST_MODELS,
    FieldDrawing,
    FieldRequest,
    Images,
    Source,
    Timing,
    draw_fields,
    first_picture,
    time_fields,
)
from .field_tables import status_line, timings_of
from .figure import PhotographFigure, Position
from .lane import Job
from .model_choice import add_given, checked, small_models
from .pace import Pace
from .page import PageView, picture_state
from .request import DISPLAY, same_place
from .state import KERNELS, deliverer, session_document, when_loaded

ALL_CHANNELS = -1


class ReceptiveFieldView(PageView):
    """One unit, at the same place of the picture in all models; see `PageView`."""

    LINK = (
        "models", "layers", "image", "count", "size", "row", "col", "channels", "channel", "gradient", "decades",
        "first", "second",
    )  # fmt: skip

    EXTENSIONS = ("tabulator",)

    models = param.List(default=["gspn_nano", "swin_nano", "nat_nano"], item_type=str, bounds=(1, MOST_MODELS))
    layers = param.List(default=[], item_type=str)
    given = param.Dict(default={})
    image: Any = param.Selector(default=CROPS, objects=[CROPS])
    upload = param.Bytes(default=None)
    count = param.Integer(default=8, bounds=(1, MOST_IMAGES))
    size = param.Integer(default=0, bounds=(0, LARGEST_SIDE))
    row = param.Integer(default=0, bounds=(0, None))
    col = param.Integer(default=0, bounds=(0, None))
    channels: Any = param.Selector(default="relu_sum", objects={words: name for name, words in CHANNELS.items()})
    channel = param.Integer(default=ALL_CHANNELS, bounds=(ALL_CHANNELS, None))
    gradient: Any = param.Selector(default="relu", objects={words: name for name, words in GRADIENTS.items()})
    opacity = param.Number(default=0.85, bounds=(0, 1), step=0.05)
    decades = param.Number(default=maps.DECADES, bounds=(0.5, 12), step=0.5)
    first = param.Integer(default=1, bounds=(1, MOST_MODELS))
    second = param.Integer(default=2, bounds=(1, MOST_MODELS))

    def __init__(self, **params: Any) -> None:
        self.param.image.objects = {"crops of the photographs": CROPS} | {name: name for name in list_images()}
        for name, known in (("image", [CROPS, *list_images()]), ("channels", CHANNELS), ("gradient", GRADIENTS)):
            if params.get(name, self.param[name].default) not in known:
                raise ValueError(unknown(name, str(params[name]), known))
        wanted = {name: params.pop(name) for name in ("row", "col") if name in params}
        models, layers = params.pop("models", self.param.models.default), params.pop("layers", [])
        models, layers = checked(models, layers, params.get("given", {}), strict=True)
        super().__init__(models=models, layers=layers, **params)
        self._timings: dict[Any, Timing] = {}
        self._compared_as: tuple[str, list[str], list[str]] = ("", [], [])  # the last of COMPARISONS
        self._asked: FieldRequest | None = None  # what the lane was asked for last
        self._busy = False  # whether it is at work on that
        self._placed = False  # whether the unit was chosen since the last drawing, on the grid of now
        self._opened = False  # whether the browser shows the page: it opens on the maps, which the rest would delay
        self._announced: FieldRequest | None = None  # what the status sentence is about
        self._grid: Position = (1, 1)  # what row and col count on
        self._keep_place()
        self.param.update(**wanted)
        self.photograph = PhotographFigure(self.query)
        self.maps = tuple(MapFigure(self._pick, f"map-{n + 1}") for n in range(MOST_MODELS))
        self.curves = square_curves(), ranked_curves()
        self.difference = DifferenceFigure(self._pick, "difference")
        self.downloads, self._pace = Downloads(self), Pace()
        self.layout = FieldLayout(self)
        self.controls, self.body = self.layout.controls, self.layout.body
        self.body.extend(self._pace.widgets)
        self._try(lambda: self._show(first_picture(self._ask())))  # the page opens on a finished picture
        self.param.watch(self._drop_upload, ["image"])
        drawn_from = ["models", "layers", "image", "upload", "count", "size", "row", "col", "channels", "channel"]
        self.param.watch(self._changed, [*drawn_from, "gradient"])
        self.param.watch(lambda *_: self._redraw(), ["decades", "first", "second"])
        self.param.watch(lambda *_: self._set_opacity(), ["opacity"])
        KERNELS.start()
        when_loaded(self._loaded)

    @classmethod
    def opened(cls, model: Any, image: Any, **state: Any) -> Self:
        """The page on one model or a list of up to four, each a text or a model from `load_model`."""
        given: dict[str, VisionModel] = {}
        models = [add_given(each, given) for each in (model if isinstance(model, list | tuple) else [model])]
        return cls(**({"models": models, "given": given} | picture_state(image) | state))

    def _loaded(self) -> None:
        """The rest of the images and of the figures, once the browser shows the first."""
        self._opened = True
        if self._drawing is not None and self._drawing.complete:
            self._redraw()
        else:
            self.refresh()
        KERNELS.when_ready(partial(deliverer(), self._warmed))
        if session_document() is not None:
            pn.state.on_session_destroyed(lambda context: self._cancel_all())  # nobody waits for the rest

    def _cancel_all(self) -> None:
        for owner in ("picture", "latency", "checkpoint"):
            self.cancel(owner)

    def _warmed(self) -> None:
        """Draw again with the compiled kernels, and say no more that they are missing."""
        self.layout.warming.object = ""
        drawn = [] if self._drawing is None else self._drawing.named().values()
        if any(result.attrs["backend"] == "reference" for result in drawn):
            self.refresh()

    # Models

    def choose(self, models: Sequence[str], layers: Sequence[str]) -> None:
        """Compare other models; a layer that is none of its model's becomes the last one."""
        try:
            models, layers = checked(models, layers, self.given)
        except ValueError as error:
            self.refuse(error)
            return
        self.param.update(models=models, layers=layers)

    def add_model(self, *_: Any) -> None:
        """Compare one model more: the first small one that is not on the page."""
        name = next((name for name in small_models() if name not in self.models), self.models[0])
        self.choose([*self.models, name], [*self.layers, ""])

    def compare(self, name: str) -> None:
        """Show a comparison of `COMPARISONS`."""
        found = COMPARISONS[name](self.models[0], self.given)
        self._compared_as = name, *checked(found.models, found.layers, self.given)
        with param.parameterized.batch_call_watchers(self):
            self.choose(found.models, found.layers)
            self._follow_grid()
            self.to_centre() if found.unit is None else self._pick(*found.unit)

    def comparison(self) -> str:
        """The comparison of `COMPARISONS` that is shown, or an empty text."""
        name, models, layers = self._compared_as
        return name if (models, layers) == (self.models, self.layers) else ""

    def add_checkpoint(self, data: bytes, file: str) -> None:
        """Compare the model of a checkpoint file, in place of the last one where there are four."""

        def run(job: Job) -> VisionModel:
            return read_checkpoint(data, file, [name for name in self.models if name not in self.given])

        self.submit(run, partial(self._add_loaded, file), owner="checkpoint")

    def _add_loaded(self, file: str, model: VisionModel) -> None:
        given = dict(self.given)
        name = add_given(model, given, file)
        kept = MOST_MODELS - 1
        with param.parameterized.batch_call_watchers(self):
            self.given = given
            self.choose([*self.models[:kept], name], [*self.layers[:kept], ""])

    def _changed(self, *events: param.parameterized.Event) -> None:
        """Draw what is asked for now; before, bring the layers in line with the models, and the unit with the grid."""
        self._placed |= any(event.name in ("row", "col") for event in events)
        try:
            models, layers = checked(self.models, self.layers, self.given)
        except ValueError as error:
            self.halt()
            self.refuse(error)
            return
        if (models, layers) != (self.models, self.layers):
            self.param.update(models=models, layers=layers)  # which comes back here
            return
        self._messages.visible = False
        placed, self._placed = self._placed, False
        if placed:
            self._follow_grid()
            inside = min(self.row, self._grid[0] - 1), min(self.col, self._grid[1] - 1)
            if inside != (self.row, self.col):
                self.query(*inside)
                return  # which comes back here
        elif self._keep_place():
            return  # which comes back here, too
        self.refresh()

    # The unit

    def query(self, row: int, col: int) -> None:
        """Choose the unit, a cell of the first model's layer."""
        self.param.update(row=row, col=col)

    def move(self, down: int, right: int) -> None:
        """Move the unit by whole cells, stopping at the border."""
        rows, cols = self._grid
        self.query(min(max(self.row + down, 0), rows - 1), min(max(self.col + right, 0), cols - 1))

    def to_centre(self) -> None:
        """Choose the central unit, of every model its own."""
        self.query(*centre_of(self._grid))

    def _pick(self, down: float, right: float) -> None:
        """Choose the unit at a place given as shares of the picture."""
        self.query(int(down * self._grid[0]), int(right * self._grid[1]))

    def _keep_place(self) -> bool:
        """Keep the unit at the same place of the picture when the first model's grid changes; whether that moved it."""
        old = self._follow_grid()
        before = self.row, self.col
        unit = min(self.row, old[0] - 1), min(self.col, old[1] - 1)
        self.query(*(centre_of(self._grid) if unit == centre_of(old) else same_place(unit, old, self._grid)))
        return (self.row, self.col) != before

    def _follow_grid(self) -> Position:
        """Count rows and columns on the grid of the first model's layer; the grid that they counted on until now."""
        source, old = self.sources()[0], self._grid
        with suppress(ValueError):  # a size that does not fit, which `refresh` says
            self._grid = resolve(source.shapes(), source.layer, size=self.size or None).grid
        return old

    # Drawing

    def sources(self) -> tuple[Source, ...]:
        """The compared models with their layers."""
        pairs = zip(self.models, self.layers, strict=True)
        return tuple(Source(name, layer, self.given.get(name)) for name, layer in pairs)

    def request(self) -> FieldRequest:
        """What the page asks for now."""
        unit = min(self.row, self._grid[0] - 1), min(self.col, self._grid[1] - 1)
        channels = self.channels if self.channel == ALL_CHANNELS else f"channel {self.channel}"
        images = Images(self.image, self.upload, self.count)
        chosen = None if unit == centre_of(self._grid) else unit
        return FieldRequest(self.sources(), images, chosen, self.size, channels, self.gradient)

    def _ask(self) -> FieldRequest:
        self._asked = self.request()
        return self._asked

    def refresh(self, anew: bool = False) -> None:
        """Let the lane compute what the page asks for, in place of what it is at work on.

        anew: forget what is remembered of it.
        """
        try:
            request = self.request()
            request.specs()
        except ValueError as error:
            self.halt()
            self._fail(error)
            return
        self._asked, self._busy = request, True
        if self._drawing is not None and self._drawing.request == request and not anew:
            self._drawing = replace(self._drawing, running=True)
            self._tell()
        else:
            self.layout.show_waiting()
        run = partial(draw_fields, request, anew, lambda: self._pace.ready)
        self.submit(partial(_published, run, partial(deliverer(), self._show)), self._show)

    def halt(self, *_: Any) -> None:
        """Stop; the picture as far as it got stays."""
        self.cancel()
        self._asked, self._busy = None, False
        if self._drawing is not None:
            self._drawing = replace(self._drawing, running=False)
            self._tell()

    def run_again(self, *_: Any) -> None:
        """Go on where it was stopped, or compute everything anew where it was finished."""
        self._messages.visible = False
        drawing = self._drawing
        self.refresh(anew=drawing is not None and drawing.complete and drawing.request == self.request())

    def _show(self, drawing: FieldDrawing | Exception) -> None:
        """Show what the lane gave, unless something else has been asked for since."""
        if isinstance(drawing, Exception):
            self.halt()
            self._fail(drawing)
        elif drawing.request == self._asked:
            self._drawing = drawing
            # The first picture of something else is there sooner without the figures below, which follow with the next.
            self._redraw(whole=not drawing.running or self._announced == drawing.request)
            self._pace.sent()
            self._busy = self._busy and drawing.running

    def shown(self) -> FieldDrawing | None:
        """What is on the page; None before anything is."""
        return self._drawing

    def _redraw(self, whole: bool = True) -> None:
        """Draw what is shown; the figures below the maps only where `whole`, and once the page is open."""
        if self._drawing is None:
            return
        with pn.io.hold():
            self.layout.draw(self._drawing, whole and self._opened)
            self._tell()
            self._code.value = python_code(self._drawing)

    def _tell(self) -> None:
        """The words about what is shown and how far it is."""
        drawing = self._drawing
        with pn.io.hold():
            self.layout.tell(drawing, timings_of(drawing, self._timings))
            if not drawing.running or self._announced != drawing.request:  # not after every image
                self._announced = drawing.request
                self._status.object = status_line(drawing)

    def _set_opacity(self) -> None:
        for figure in (*self.maps, self.difference):
            figure.set_opacity(self.opacity)

    # Latency

    def measure_now(self, *_: Any) -> None:
        """Time the shown fields on this machine, one image each, in the lane."""
        if self._drawing is None:
            return
        request = self._drawing.request
        self.layout.measure.param.update(label="Measuring …", disabled=True)
        run = partial(_published, partial(time_fields, request), partial(deliverer(), self._timed))
        self.submit(run, partial(self._timed, last=True), "latency")

    def _timed(self, timings: Sequence[Timing] | Exception, last: bool = False) -> None:
        if last:
            self.layout.measure.param.update(label=MEASURE, disabled=False)
        if isinstance(timings, Exception):
            self._fail(timings)
            return
        self._timings |= {(timing.name, timing.spec): timing for timing in timings}
        self._tell()

    # Inputs

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

    def refuse(self, error: Exception) -> None:
        """Say what is wrong; what is shown stays."""
        self._fail(error)


def _published(
    run: Callable[[Job], Generator[Any, None, Any]], publish: Callable[[Any], None], job: Job
) -> Generator[None, None, Any]:
    """A run whose pictures are published, and only they: what else it yields are turns for others in the lane.

    Its failure is its result, because the page then has to stop waiting.
    """
    with closing(run(job)) as steps:
        while True:
            try:
                picture = next(steps)
            except StopIteration as end:
                return end.value
            except Exception as error:
                return error
            if picture is not None and not job.cancelled.is_set():
                publish(picture)
            yield


def centre_of(grid: Position) -> Position:
    """The cell that `resolve` calls the centre."""
    return grid[0] // 2, grid[1] // 2
