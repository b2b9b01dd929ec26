"""What the Patterns page asks the lane for, and what comes back: plain data, computed without a session."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import xarray as xr

from workbench.analysis.patterns import PatternSpec, patterns, relation
from workbench.plots.patterns import aggregate

from .lane import Job
from .request import DISPLAY
from .state import shared_image

#: (query, key) uint8, and the whole of it at the resolution of the figure.
Matrix = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class PatternRequest:
    """Everything that one drawing of the page depends on: one pattern or two, on one grid."""

    specs: tuple[PatternSpec, ...]
    image: str
    matrix: bool


@dataclass(frozen=True)
class PatternDrawing:
    """What the lane made of a request; no matrices where none are asked for or their code is not compiled yet."""

    request: PatternRequest
    photograph: np.ndarray
    results: tuple[xr.Dataset, ...]
    matrices: tuple[Matrix, ...]


def draw_patterns(request: PatternRequest, job: Job | None = None) -> PatternDrawing:
    """Compute a request."""
    results = tuple(patterns(spec) for spec in request.specs)
    wanted = request.matrix and AGGREGATION.ready.is_set()
    matrices = tuple(_matrix(spec.pattern, spec.grid) for spec in request.specs) if wanted else ()
    return PatternDrawing(request, shared_image(request.image, DISPLAY).rgb, results, matrices)


@lru_cache(maxsize=4)
def _matrix(pattern: str, grid: tuple[int, int]) -> Matrix:
    found = relation(PatternSpec(pattern, grid)).values
    return found, aggregate(found, (0, len(found)), (0, len(found)))


class Aggregation:
    """Datashader's code, which takes seconds to compile once per process: nobody should wait for it."""

    def __init__(self) -> None:
        self.ready = threading.Event()
        self._changing = threading.Lock()
        self._begun = False
        self._waiting: list[Callable[[], None]] = []

    def when_ready(self, call: Callable[[], None]) -> None:
        """Call once the code is compiled, from another thread; at once if it is. The first caller starts it."""
        with self._changing:
            if not self.ready.is_set():
                self._waiting.append(call)
                if not self._begun:
                    self._begun = True
                    threading.Thread(target=self._compile, name="workbench-matrix", daemon=True).start()
                return
        call()

    def _compile(self) -> None:
        small = np.zeros((8, 8), np.uint8)
        for pixels in (4, 16):  # two functions: one for more cells than pixels, one for fewer
            aggregate(small, (0, 8), (0, 8), pixels)
        with self._changing:
            self.ready.set()
            waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()


#: The matrix's code in this process.
AGGREGATION = Aggregation()
