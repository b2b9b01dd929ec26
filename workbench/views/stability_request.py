"""What the Stability page asks the lane for, and what comes back: plain data, computed without a session."""

from dataclasses import dataclass
from typing import Any

import xarray as xr

from workbench.analysis.stability import stability
from workbench.analysis.stability_spec import StabilitySpec
from workbench.images import Image

from .lane import Job
from .state import operator_at, shared_image, shared_model

#: Pixels of an uploaded picture before it is stretched to the lines.
UPLOADED = 512


@dataclass(frozen=True)
class LayerGates:
    """Gates of a layer at the page's picture; channel None: the one whose row sums are furthest from 1."""

    model: str
    layer: str
    direction: str
    channel: int | None


@dataclass(frozen=True)
class StabilityRequest:
    """Everything that one drawing of the page depends on; `layer` takes the place of `spec` where it is given."""

    spec: StabilitySpec
    layer: LayerGates | None
    upload: bytes | None

    def picture(self, size: int) -> Image:
        """The page's picture."""
        return shared_image(self.spec.image if self.upload is None else self.upload, size)


@dataclass(frozen=True)
class StabilityDrawing:
    """What the lane made of a request."""

    request: StabilityRequest
    result: xr.Dataset


def draw_stability(request: StabilityRequest, job: Job | None = None) -> StabilityDrawing:
    """Compute a request: the laboratory's gates, or a layer's, and the picture propagated under them.

    Raises:
        ValueError: a layer that does not propagate, or a channel that it does not have.
    """
    if request.layer is None:
        x: Any = None if request.upload is None else request.picture(UPLOADED)
        return StabilityDrawing(request, stability(request.spec, x=x))
    gates = request.layer
    model = shared_model(gates.model)
    picture = request.picture(model.input_size)
    op = operator_at(model, picture, gates.layer)
    return StabilityDrawing(request, stability(op, direction=gates.direction, channel=gates.channel, x=picture))
