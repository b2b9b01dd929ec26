"""What the Attribution page asks the lane for, and what comes back: plain data, computed without a session."""

import json
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr

from workbench.analysis.attribution import METHODS, attribute
from workbench.images import Image
from workbench.models.base import VisionModel

from .attribution_steps import in_steps
from .figure import Position
from .lane import Job
from .request import DISPLAY, same_place
from .state import KERNELS, Recent, shared_image, shared_model

#: How many classes are listed, the highest first.
LISTED = 5

#: Methods that take so few passes that nobody waits for them, and the one a page opens on while others are computed.
QUICK = frozenset({"saliency", "input_x_gradient", "deep_lift", "layer_grad_cam", "neuron_gradient"})
FIRST = "saliency"

#: Seconds between two reports of progress, and with them between two turns of others in the lane.
EVERY = 0.1

Options = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Source:
    """One panel: a model, a method with its options, and what it explains.

    target: a class, None for the one with the highest logit; or else `layer`, the layer of a unit.
    """

    model: str
    method: str
    target: int | None = None
    layer: str | None = None
    channel: int | None = None
    options: Options = ()


@dataclass(frozen=True)
class AttributionRequest:
    """Everything that one drawing of the page depends on; `unit` is a cell of the first layer that has one."""

    sources: tuple[Source, ...]
    image: str
    upload: bytes | None = field(default=None, repr=False)
    unit: Position | None = None

    def grid(self) -> Position | None:
        """The grid that `unit` is a cell of; None where every panel explains a class."""
        return next((grid_of(s.model, s.layer) for s in self.sources if s.layer is not None), None)

    def unit_of(self, source: Source) -> Position | None:
        """The cell of a source's layer at the place of the picture that `unit` has."""
        first = self.grid()
        if source.layer is None or first is None or self.unit is None:
            return None
        return same_place(self.unit, first, grid_of(source.model, source.layer))

    def quick(self) -> "AttributionRequest":
        """The same with a fast method in the place of each slow one: what a page opens on."""
        return replace(self, sources=tuple(map(_quick, self.sources)))

    def picture(self, size: int) -> Image:
        return shared_image(self.image if self.upload is None else self.upload, size)


def _quick(source: Source) -> Source:
    return source if source.method in QUICK else replace(source, method=FIRST, options=())


class Progress(NamedTuple):
    """How far a request is: the panel that is computed, counted from 0, and the images passed through its model."""

    source: Source
    panel: int
    done: int
    planned: int


@dataclass(frozen=True)
class Panel:
    """A finished attribution.

    unit: its cell of the layer's grid; seconds: what it took when it was computed; classes: the highest logits, as
    (class, logit), the highest first, where a class is explained.
    """

    source: Source
    result: xr.Dataset
    seconds: float
    unit: Position | None
    grid: Position | None
    classes: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class AttributionDrawing:
    """What the lane made of a request."""

    request: AttributionRequest
    photograph: np.ndarray
    panels: tuple[Panel, ...]


Report = Callable[[Progress], None]

_panels, _logits = Recent(12), Recent(24)


def steps(request: AttributionRequest, job: Job) -> Generator[Progress, None, AttributionDrawing]:
    """Compute a request as the lane likes it: a turn ends with each report of progress."""
    return in_steps(lambda report: compute(request, report, job.cancelled.is_set))


def compute(
    request: AttributionRequest, report: Report | None = None, cancelled: Callable[[], bool] | None = None
) -> AttributionDrawing:
    """Compute a request; what was computed for an earlier one is taken from there.

    Raises:
        ValueError: the picture, a class or a layer does not exist, or a method does not run on a model.
        Cancelled: `cancelled()` was true.
    """
    photograph = request.picture(DISPLAY).rgb  # first: what is wrong with a picture concerns all panels
    panels = []
    for number, source in enumerate(request.sources):
        try:
            panels.append(_panel(request, number, report, cancelled))
        except ValueError as error:
            if len(request.sources) == 1:
                raise
            raise ValueError(f"{METHODS[source.method].title} of {source.model}: {error}") from error
    return AttributionDrawing(request, photograph, tuple(panels))


def _panel(
    request: AttributionRequest, number: int, report: Report | None, cancelled: Callable[[], bool] | None
) -> Panel:
    source = request.sources[number]
    model = shared_model(source.model)
    model.set_backend(KERNELS.backend)
    image = request.picture(model.input_size)
    unit = request.unit_of(source)
    seen = (model.name, json.dumps(model.config, sort_keys=True, default=str), model.weights_sha256, image.sha256)
    key = (*seen, model.backend, source, unit)

    def make() -> Panel:
        import workbench.analysis.attribution_methods  # noqa: F401  (else the first attribution is timed with it)

        clock = _Clock(source, number, report)
        aim: dict[str, Any] = {"target": source.target} if unit is None else {"layer": source.layer, "unit": unit}
        if source.channel is not None:
            aim["channel"] = source.channel
        aim |= {"progress": clock.progress, "cancelled": cancelled, **dict(source.options)}
        result = attribute(model, image, source.method, **aim)
        seconds = clock.seconds()
        grid = None if source.layer is None else grid_of(source.model, source.layer)
        classes = _logits.get(seen, lambda: highest(model, image)) if unit is None else ()
        return Panel(source, result, seconds, unit, grid, classes)

    return _panels.get(key, make)


class _Clock:
    """Passes progress on, not too often, and tells the time without that in which others had their turn."""

    def __init__(self, source: Source, panel: int, report: Report | None) -> None:
        self._source, self._panel, self._report = source, panel, report
        self._rested = 0.0
        self._begun = self._last = time.perf_counter()

    def progress(self, done: int, planned: int) -> None:
        now = time.perf_counter()
        if self._report is None or now - self._last < EVERY:
            return
        self._report(Progress(self._source, self._panel, done, planned))
        self._last = time.perf_counter()
        self._rested += self._last - now

    def seconds(self) -> float:
        return time.perf_counter() - self._begun - self._rested


def highest(model: VisionModel, image: Image) -> tuple[tuple[int, float], ...]:
    """The classes with the highest logits, as (class, logit)."""
    with torch.no_grad():
        logits = model(image.tensor.to(model.device))[0].float().cpu()
    values, classes = logits.topk(min(LISTED, len(logits)))
    return tuple(zip(classes.tolist(), values.tolist(), strict=True))


def grid_of(model: str, layer: str) -> Position:
    """The cells of a layer's map, for pictures of the size that its model was designed for."""
    found = shared_model(model)
    grids = found.grids(found.input_size, found.input_size)
    return dict(zip(found.blocks(), grids, strict=True))[layer]


def options_of(method: str, values: Mapping[str, Any]) -> Options:
    """Those of the page's values that a method takes; None leaves the choice to the method."""
    taken = METHODS[method].options
    return tuple((name, value) for name, value in values.items() if name in taken and value is not None)


def explains_unit(method: str, target: str) -> bool:
    """Whether a panel explains a unit: where that was chosen, and by a method that explains nothing else."""
    return target == "unit" or METHODS[method].unit
