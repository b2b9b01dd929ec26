"""What the Affinity page asks the lane for, and what comes back: plain data, computed without a session."""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from workbench.analysis.affinity import AffinitySpec, affinity
from workbench.images import Image

from .figure import Position
from .lane import Job
from .state import operator_at, shared_image, shared_model

#: Pixels of the photograph on screen; models see it at their own size.
DISPLAY = 320


@dataclass(frozen=True)
class Request:
    """Everything that one drawing of the page depends on; `position` is on the first model's grid."""

    sources: tuple[tuple[str, str], ...]  # (model, layer), one or two
    image: str
    upload: bytes | None
    position: Position
    spec: AffinitySpec


@dataclass(frozen=True)
class Drawing:
    """What the lane made of a request."""

    request: Request
    photograph: np.ndarray
    results: tuple[xr.Dataset, ...]


def draw(request: Request, job: Job | None = None) -> Drawing:
    """Compute a request: the rows or columns of each model at the same place of the picture."""
    results: list[xr.Dataset] = []
    grid: Position | None = None
    for model_name, layer in request.sources:
        if job is not None and job.cancelled.is_set():
            break
        model = shared_model(model_name)
        op = operator_at(model, picture(request, model.input_size), layer)
        grid = grid or op.grid
        position = same_place(request.position, grid, op.grid)
        channel = request.spec.channel
        if channel is not None and channel >= op.value.shape[0]:
            channel = None
        spec = AffinitySpec(position, request.spec.side, channel, request.spec.reduce)
        results.append(affinity(op, spec))
    return Drawing(request, picture(request, DISPLAY).rgb, tuple(results))


def picture(request: Request, size: int) -> Image:
    """The request's picture; the same object for the same picture and size."""
    return shared_image(request.image if request.upload is None else request.upload, size)


def same_place(position: Position, grid: Position, other: Position) -> Position:
    """The cell of another grid that holds the centre of a cell."""
    row, col = (int((p + 0.5) * o / g) for p, g, o in zip(position, grid, other, strict=True))
    return row, col
