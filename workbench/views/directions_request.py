"""What the Directions page asks the lane for, and what comes back: plain data, computed without a session."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import xarray as xr

from workbench.analysis.directions import DirectionsSpec, directions
from workbench.models import list_models
from workbench.models.expression import described

from .lane import Job
from .request import DISPLAY
from .state import model_names, operator_at, shared_image, shared_model

#: The kind of the layers that have directions.
KIND = "propagation"


@dataclass(frozen=True)
class DirectionsRequest:
    """Everything that one drawing of the page depends on."""

    model: str
    layer: str
    image: str
    upload: bytes | None
    spec: DirectionsSpec

    @property
    def source(self) -> str | bytes:
        """What the picture is loaded from."""
        return self.image if self.upload is None else self.upload


@dataclass(frozen=True)
class DirectionsDrawing:
    """What the lane made of a request."""

    request: DirectionsRequest
    photograph: np.ndarray
    result: xr.Dataset


def draw(request: DirectionsRequest, job: Job | None = None) -> DirectionsDrawing:
    """Compute a request; a channel that the layer does not have becomes all of them."""
    model, spec = shared_model(request.model), request.spec
    op = operator_at(model, shared_image(request.source, model.input_size), request.layer)
    if spec.channel is not None and spec.channel >= op.value.shape[0]:
        spec = replace(spec, channel=None)
    result = directions(
        op, spec.position, towards=spec.towards, channel=spec.channel, reduce=spec.reduce, quantity=spec.quantity
    )
    return DirectionsDrawing(request, shared_image(request.source, DISPLAY).rgb, result)


def models_with_directions() -> list[str]:
    """The models that have a layer with directions, the smallest sizes first, and the given ones."""
    known = set(list_models())
    return [name for name in model_names() if (_propagates(name) if name in known else bool(layers_of(name)))]


@lru_cache(maxsize=256)
def _propagates(name: str) -> bool:
    """Whether a registered model has such a layer; it is not loaded for that."""
    return any(layer.kind == KIND for layer in described(name).layers())


def layers_of(model: str) -> list[str]:
    """The layers of a model that have directions."""
    return [layer.name for layer in shared_model(model).layers() if layer.kind == KIND]


def usual_layer(model: str) -> str:
    """The last layer of the first stage in which a scan crosses the whole map, or else of the first stage."""
    blocks, layers = shared_model(model).blocks(), layers_of(model)
    across = [name for name in layers if getattr(blocks[name][1], "chunk", None) is None] or layers
    return [name for name in across if name.split(".")[0] == across[0].split(".")[0]][-1]


def grid_of(model: str, layer: str) -> tuple[int, int]:
    """The grid of a layer for pictures of the size that its model was designed for."""
    return next(found.grid for found in shared_model(model).layers() if found.name == layer)
