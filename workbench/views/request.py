"""What the Affinity page asks the lane for, and what comes back: plain data, computed without a session."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from workbench.analysis.affinity import AffinitySpec, ChannelSpec, affinity, channel_affinity
from workbench.images import Image

from .figure import Position
from .lane import Job
from .state import operator_at, shared_image, shared_model

#: Pixels of the photograph on screen; models see it at their own size.
DISPLAY = 320


class Cells(NamedTuple):
    """The cells of a layer: its grid, and those that the picture covers, which is all but tokens of padding."""

    grid: Position
    covered: Position


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
    """What the lane made of a request: for each source its result and its cells."""

    request: Request
    photograph: np.ndarray
    results: tuple[xr.Dataset, ...]
    cells: tuple[Cells, ...]


def draw(request: Request, job: Job | None = None) -> Drawing:
    """Compute a request: the rows or columns of each model at the same place of the picture."""
    results: list[xr.Dataset] = []
    cells: list[Cells] = []
    for model_name, layer in request.sources:
        if job is not None and job.cancelled.is_set():
            break
        model = shared_model(model_name)
        op = operator_at(model, picture(request, model.input_size), layer)
        cells.append(Cells(op.grid, op.info.get("unpadded", op.grid)))
        results.append(_result(op, request.spec, moved(request.position, cells[0], cells[-1])))
    return Drawing(request, picture(request, DISPLAY).rgb, tuple(results), tuple(cells))


def _result(op: Any, spec: AffinitySpec, position: Position) -> xr.Dataset:
    """The affinity of one layer at a position, or its channel matrices if it attends over channels."""
    if op.info["kind"] == "channel":
        return channel_affinity(op, ChannelSpec(spec.reduce))
    channel = spec.channel
    if channel is not None and channel >= op.value.shape[0]:
        channel = None
    return affinity(op, AffinitySpec(position, spec.side, channel, spec.reduce))


def picture(request: Request, size: int) -> Image:
    """The request's picture; the same object for the same picture and size."""
    return shared_image(request.image if request.upload is None else request.upload, size)


def same_place(position: Position, grid: Position, other: Position) -> Position:
    """The cell of another grid that holds the centre of a cell."""
    row, col = (int((p + 0.5) * o / g) for p, g, o in zip(position, grid, other, strict=True))
    return row, col


def moved(position: Position, cells: Cells, other: Cells) -> Position:
    """The cell of another layer at the same place of the picture, or as near as its grid goes."""
    row, col = same_place(position, cells.covered, other.covered)
    return min(row, other.grid[0] - 1), min(col, other.grid[1] - 1)


def cells_of(model: str, layer: str) -> Cells:
    """The cells of a layer for pictures of the size that its model was designed for."""
    side = shared_model(model).input_size
    found = next(found for found in shared_model(model).layers() if found.name == layer)
    return Cells(found.grid, (round(side / found.stride[0]), round(side / found.stride[1])))
