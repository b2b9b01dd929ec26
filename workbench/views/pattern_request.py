"""What the Patterns page asks the lane for, and what comes back: plain data, computed without a session."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import xarray as xr

from workbench.analysis.patterns import PatternSpec, patterns, relation
from workbench.plots.patterns import aggregate

from .background import Background
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


class Aggregation(Background):
    """Datashader's code, which takes seconds to compile once per process: nobody should wait for it."""

    name = "workbench-matrix"

    def work(self) -> None:
        small = np.zeros((8, 8), np.uint8)
        for pixels in (4, 16):  # two functions: one for more cells than pixels, one for fewer
            aggregate(small, (0, 8), (0, 8), pixels)


#: The matrix's code in this process.
AGGREGATION = Aggregation()
