"""What the page of receptive fields asks the lane for, and what comes back: plain data, computed without a session.

The models of a comparison take turns image by image, the one that has used the least time next, so that all maps fill
together and a large model holds up nobody. What was computed is remembered: going back to a unit costs nothing.
"""

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from workbench.analysis.image_folder import SampleCrops, sample_crops
from workbench.analysis.latency import device_name, time_runs
from workbench.analysis.receptive_field import ReceptiveFieldSpec, RunningField, resolve, stream
from workbench.images import Image
from workbench.models import expression
from workbench.models.base import VisionModel

from .field_memory import check_memory
from .figure import Position
from .lane import Job
from .request import DISPLAY, same_place
from .state import KERNELS, shared_image, shared_model

#: How many models a page compares, over how many images, of how many pixels a side.
MOST_MODELS, MOST_IMAGES, LARGEST_SIDE = 4, 64, 1024

#: The name under which crops of the photographs are asked for instead of one picture.
CROPS = "crops"

#: Seconds between two pictures of a run; drawing them more often would cost more than it shows.
EVERY = 0.5

#: Pixels of all the maps that are remembered, 28 bytes each.
MOST_PIXELS = 8_000_000


# What is asked for


@dataclass(frozen=True)
class Source:
    """A model by its expression, or by the name that a given one goes by, and one of its layers."""

    name: str
    layer: str
    given: VisionModel | None = field(default=None, compare=False, repr=False)

    def shapes(self) -> VisionModel:
        """The model to ask for layers and sizes; it may have no weights."""
        return self.given or expression.described(self.name)

    def load(self) -> VisionModel:
        return self.given or _loaded(self.name)


@lru_cache(maxsize=8)  # the larger ones hold some hundred megabytes each
def _loaded(text: str) -> VisionModel:
    name, settings, seed = expression.parse(text)
    return expression.load(text) if settings or seed else shared_model(name)


@dataclass(frozen=True)
class Images:
    """One picture, shipped or uploaded, or `count` crops of the photographs."""

    picture: str
    upload: bytes | None = field(default=None, repr=False)
    count: int = 8
    seed: int = 0

    def at(self, size: int) -> Sequence[Image]:
        """The images at a size, made when they are asked for."""
        if self.upload is None and self.picture == CROPS:
            return _Crops(self.count, size, self.seed)
        return [shared_image(self.picture if self.upload is None else self.upload, size)]

    @property
    def name(self) -> str:
        """What a file of results calls them, and what a result that is remembered depends on."""
        if self.upload is not None:
            return f"upload {sha256(self.upload).hexdigest()}"
        return f"{self.count} crops, seed {self.seed}" if self.picture == CROPS else self.picture


class _Crops(Sequence[Image]):
    """`sample_crops`, remembering the small ones: several models look at the same crops in turn."""

    def __init__(self, count: int, size: int, seed: int) -> None:
        self._count, self._size, self._seed = count, size, seed

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return (_crop if self._size <= DISPLAY else _crop.__wrapped__)(index, self._size, self._seed)


@lru_cache(maxsize=16)
def _crops(size: int, seed: int) -> SampleCrops:
    return sample_crops(MOST_IMAGES, size, seed)


@lru_cache(maxsize=256)
def _crop(index: int, size: int, seed: int) -> Image:
    return _crops(size, seed)[index]


@dataclass(frozen=True)
class FieldRequest:
    """Everything that one comparison depends on.

    unit: a cell of the first model's grid, the others take the one at the same place; None: each takes its centre.
    size: pixels a side, 0 for each model's own. channels, gradient: as in `resolve`.
    """

    sources: tuple[Source, ...]
    images: Images
    unit: Position | None = None
    size: int = 0
    channels: str = "relu_sum"
    gradient: str = "relu"

    def specs(self) -> tuple[ReceptiveFieldSpec, ...]:
        """The Spec of each model.

        Raises:
            ValueError: a layer, unit or size that does not exist or does not fit; one sentence.
        """
        specs: list[ReceptiveFieldSpec] = []
        for source in self.sources:
            shapes = source.shapes()
            side = self.size or shapes.input_size
            if side > LARGEST_SIDE:
                raise ValueError(f"The page shows pictures of at most {LARGEST_SIDE} pixels a side; got {side}.")
            options: dict[str, Any] = {"channels": self.channels, "gradient": self.gradient, "batch": 1}
            spec = resolve(shapes, source.layer, "centre", side, **options)
            if self.unit is not None:
                unit = same_place(self.unit, specs[0].grid, spec.grid) if specs else self.unit
                spec = resolve(shapes, source.layer, unit, side, **options)
            specs.append(spec)
        return tuple(specs)


# What comes back


class Progress(NamedTuple):
    """Images that one model has seen, and how many it will see."""

    read: int
    planned: int


@dataclass(frozen=True)
class FieldDrawing:
    """What is known of a request so far: for each model its result, None before its first image.

    running: whether more is on its way. photograph: the first image.
    """

    request: FieldRequest
    specs: tuple[ReceptiveFieldSpec, ...]
    photograph: np.ndarray
    results: tuple[xr.Dataset | None, ...]
    progress: tuple[Progress, ...]
    running: bool

    @property
    def complete(self) -> bool:
        return all(progress.read == progress.planned for progress in self.progress)

    def named(self) -> dict[int, xr.Dataset]:
        """Number of the model -> its result under the name that it has on the page, settings included."""
        shown = zip(self.request.sources, self.results, strict=True)
        return {n: r.assign_attrs(model=source.name) for n, (source, r) in enumerate(shown) if r is not None}


class Kept(NamedTuple):
    """A run that is remembered: what continues it, and its result once it is complete."""

    state: dict[str, np.ndarray]
    result: xr.Dataset | None
    read: int


class Memory:
    """The most recently used runs of this process, as far as their maps fit. What is in it is read-only."""

    def __init__(self, most_pixels: int) -> None:
        self._most, self._kept = most_pixels, OrderedDict[str, Kept]()
        self._lock = Lock()

    def get(self, key: str) -> Kept | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: str, kept: Kept) -> None:
        """Remember a run, unless one is remembered that is further."""
        with self._lock:
            if key not in self._kept or self._kept[key].read <= kept.read:
                self._kept[key] = kept
                self._kept.move_to_end(key)
            while sum(each.state["sums"].size for each in self._kept.values()) > self._most:
                self._kept.popitem(last=False)

    def forget(self, key: str) -> None:
        with self._lock:
            self._kept.pop(key, None)


MEMORY = Memory(MOST_PIXELS)


# Computing


class Run:
    """One model's part of a request, one image a step."""

    def __init__(
        self, source: Source, spec: ReceptiveFieldSpec, images: Images, cancelled: Callable[[], bool], anew: bool
    ) -> None:
        self.source, self.spec, self.images = source, spec, images.at(spec.size[0])
        self._name, self._cancelled, self._anew = images.name, cancelled, anew
        self._key, self._backend = "", ""
        self._field: RunningField | None = None
        self._steps: Iterator[RunningField] = iter(())
        self._result: tuple[int, xr.Dataset] | None = None
        self.spent = 0.0
        self.read, self.ended = 0, False

    @property
    def progress(self) -> Progress:
        return Progress(self.read, len(self.images))

    def step(self) -> None:
        """Look at the next image; the first step loads the model and what is remembered."""
        if self._backend != KERNELS.backend:  # sums of two backends would be the result of neither
            self._open()
        started = time.perf_counter()
        if not self.ended:
            self.ended = next(self._steps, None) is None
        if self._field is not None:
            self.read = self._field.read
            self.ended = self.ended or self._field.complete
        self.spent += time.perf_counter() - started

    def _open(self) -> None:
        self._backend = KERNELS.backend
        model = self.source.load()
        model.set_backend(self._backend)
        check_memory(model, self.spec.layer, self.spec.size[0])
        self._key = key_of(model, self.spec, self._name)
        if self._anew:
            MEMORY.forget(self._key)
        kept = MEMORY.get(self._key)
        self.read, self.ended, self._field, self._result = 0, False, None, None
        if kept is not None and kept.result is not None:
            self.read, self.ended, self._result = kept.read, True, (kept.read, kept.result)
            return
        restored = None if kept is None else RunningField.restore(kept.state, self.spec, model)
        self._field = restored or RunningField(self.spec, model)
        self._steps = stream(model, self.images, self.spec, cancelled=self._cancelled, start=self._field)

    def result(self) -> xr.Dataset | None:
        """The result of the images so far."""
        if self._field is not None and self.read and (self._result is None or self._result[0] != self.read):
            self._result = self.read, self._field.result()
        return None if self._result is None else self._result[1]

    def remember(self) -> None:
        if self._field is not None and self._field.read:
            result = self.result() if self._field.complete else None
            MEMORY.put(self._key, Kept(self._field.state(), result, self._field.read))


def key_of(model: VisionModel, spec: ReceptiveFieldSpec, images: str) -> str:
    """What names a run: all that its bits depend on."""
    settings = [model.name, model.config, model.weights_sha256, model.backend, str(model.device)]
    return json.dumps([settings, repr(spec), images], sort_keys=True, default=str)


def runs_of(request: FieldRequest, cancelled: Callable[[], bool] = lambda: False, anew: bool = False) -> list[Run]:
    return [
        Run(source, spec, request.images, cancelled, anew)
        for source, spec in zip(request.sources, request.specs(), strict=True)
    ]


def drawing_of(request: FieldRequest, runs: Sequence[Run], running: bool) -> FieldDrawing:
    results = tuple(run.result() for run in runs)
    specs, progress = tuple(run.spec for run in runs), tuple(run.progress for run in runs)
    return FieldDrawing(request, specs, request.images.at(DISPLAY)[0].rgb, results, progress, running)


def first_picture(request: FieldRequest) -> FieldDrawing:
    """The request over one image, or over as many as are remembered."""
    runs = runs_of(request)
    for run in runs:
        run.step()
        run.remember()
    return drawing_of(request, runs, running=not all(run.ended for run in runs))


def draw_fields(
    request: FieldRequest, anew: bool, ready: Callable[[], bool], job: Job
) -> Generator[FieldDrawing | None, None, FieldDrawing]:
    """Compute a request in steps of one image; what is yielded is worth drawing, or None between two pictures.

    anew: forget what is remembered of it. ready: whether another picture can be drawn.
    """
    runs = runs_of(request, job.cancelled.is_set, anew)
    try:
        published, all_shown = time.perf_counter(), False
        while waiting := [run for run in runs if not run.ended]:
            min(waiting, key=lambda run: run.spent).step()
            now, have = time.perf_counter(), all(run.read for run in runs)
            worth = now - published > EVERY or (have and not all_shown)
            if worth and ready() and not all(run.ended for run in runs):
                published, all_shown = now, have
                yield drawing_of(request, runs, running=True)
            else:
                yield None
        return drawing_of(request, runs, running=False)
    finally:
        for run in runs:
            run.remember()


# Timing


@dataclass(frozen=True)
class Timing:
    """Seconds that one image takes, forward, backward and summed, in runs of one after the other."""

    name: str
    spec: ReceptiveFieldSpec
    median: float
    p20: float
    p80: float
    count: int
    backend: str
    device: str


def time_fields(request: FieldRequest, job: Job) -> Generator[list[Timing], None, list[Timing]]:
    """Time the field of one image for each model, one model a step."""
    found: list[Timing] = []
    for source, spec in zip(request.sources, request.specs(), strict=True):
        found.append(_time(source, spec, request.images.at(spec.size[0])[0]))
        yield list(found)
    return found


def _time(source: Source, spec: ReceptiveFieldSpec, image: Image) -> Timing:
    model = source.load()
    model.set_backend(KERNELS.backend)

    def once() -> RunningField:
        (running,) = stream(model, [image], spec)
        return running

    backend = once().result().attrs["backend"]
    times = time_runs(once, model.device, 0.5)
    median, p20, p80 = (float(value) for value in np.percentile(times, [50, 20, 80]))
    return Timing(source.name, spec, median, p20, p80, len(times), backend, device_name(model.device))
