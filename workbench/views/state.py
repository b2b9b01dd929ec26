"""What the pages share: models loaded once per process, their activations at an image, and how warm the kernels are."""

import asyncio
import json
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from typing import Any

import panel as pn

from workbench.images import Image, load_image
from workbench.models import list_models, load_model
from workbench.models.base import VisionModel
from workbench.operators import operator

from .background import Background


def session_document() -> Any:
    """The Bokeh document of the served session that is running now; None in a notebook, a script or a test."""
    document = pn.state.curdoc
    return document if document is not None and document.session_context is not None else None


def notebook_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop of the notebook kernel that this runs in; None elsewhere (IPython may not be installed)."""
    ipython = sys.modules.get("IPython")
    if ipython is None or ipython.get_ipython() is None:
        return None
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class Recent:
    """A small cache of the most recently used results, for the lane and for sessions that draw their first picture."""

    def __init__(self, size: int) -> None:
        self._size, self._items = size, OrderedDict[Hashable, Any]()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key]
        made = make()
        with self._lock:
            self._items[key] = made
            while len(self._items) > self._size:
                self._items.popitem(last=False)
        return made


_inputs, _operators = Recent(6), Recent(12)


_given: dict[str, VisionModel] = {}


def offer(model: VisionModel) -> str:
    """Make a model that the caller loaded available to the pages; returns the name it goes by there.

    One that is given again keeps its name; another of the same name is numbered, so that no page's model changes.
    """
    for name, known in _given.items():
        if known is model:
            return name
    numbers = range(1, len(_given) + 2)
    names = [f"{model.name} (given{'' if number == 1 else f' {number}'})" for number in numbers]
    name = next(name for name in names if name not in _given)
    _given[name] = model
    return name


#: Sizes of models, the smallest first: small models answer faster, so they are offered first.
SIZES = ("nano", "mini", "tiny", "small", "base")


def model_names() -> list[str]:
    """The registry's models, the smallest sizes first, and the given ones."""

    def size_and_name(name: str) -> tuple[int, str]:
        size = name.rpartition("_")[2]
        return SIZES.index(size) if size in SIZES else len(SIZES), name

    return [*sorted(list_models(), key=size_and_name), *_given]


@lru_cache(maxsize=8)  # the larger ones hold some hundred megabytes each
def _loaded(name: str) -> VisionModel:
    return load_model(name, weights="random", seed=0)


def shared_model(name: str) -> VisionModel:
    """A model for every session of this process: read-only."""
    return _given[name] if name in _given else _loaded(name)


@lru_cache(maxsize=32)
def shared_image(source: str | bytes, size: int) -> Image:
    """A picture by the name it ships under, or an uploaded one by its bytes, at a size."""
    return load_image(source, size=size)


def operator_at(model: VisionModel, image: Image, layer: str) -> Any:
    """`operator`, remembering the activations of recent images and recent operators."""
    model.set_backend(KERNELS.backend)
    settings = json.dumps(model.config, sort_keys=True, default=str)  # some leave names and weights as they are
    key = (model.name, settings, model.weights_sha256, image.sha256, model.backend)
    inputs = _inputs.get(key, lambda: model.mixer_inputs(image.tensor.to(model.device)))
    return _operators.get((*key, layer), lambda: operator(model, image, layer, inputs))


class Kernels(Background):
    """The CPU kernels' compilation. Until it is done, layers run on the reference backend."""

    name = "workbench-warm"

    @property
    def backend(self) -> str:
        return "auto" if self.ready.is_set() else "reference"

    def work(self) -> None:
        """Compile in a process of its own (which fills numba's cache), then load the compiled code here."""
        from kernels.warm import warm

        subprocess.run([sys.executable, "-m", "kernels.warm"], check=False, capture_output=True)
        warm()


#: The kernels of this process.
KERNELS = Kernels()


def deliverer() -> Callable[..., None]:
    """Call a function in the session that asked, or at once where there is no session (a notebook, a test)."""
    document = session_document()
    if document is not None:

        def later(function: Callable[..., None], *args: Any) -> None:
            document.add_next_tick_callback(partial(function, *args))

        return later
    loop = notebook_loop()
    if loop is None:
        return lambda function, *args: function(*args)

    def in_kernel(function: Callable[..., None], *args: Any) -> None:  # a notebook draws in its kernel's own thread
        loop.call_soon_threadsafe(function, *args)

    return in_kernel


def when_loaded(call: Callable[[], None]) -> None:
    """Call once the browser shows the session that is being built, or at once where there is no session.

    What changes between the page's first answer and its connection is not seen by the browser.
    """
    if session_document() is None:
        call()
    else:
        pn.state.onload(call)
