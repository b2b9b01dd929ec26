"""A mixing layer, frozen at an image, as a linear map over positions: y = A v, channel by channel.

Row p of A is what position p reads; column q is where position q is heard. Both come from applying the layer's own
kernel (or its transpose) to one-hot maps, so no N x N matrix is built to answer a click, and the kernel that runs the
model also draws the picture. Channels do not mix inside A: each has a matrix of its own, and `reduce` names how a
picture combines them. (SCNN's do; slices.py says what its pictures show.)
"""

from typing import Any, Protocol

import torch
import xarray as xr

from kernels.backends import choose
from workbench.images import Image
from workbench.models.base import VisionModel
from workbench.models.states import ChannelState, DiffusionState, PropagationState, SlicesState

from .channel import ChannelOperator
from .linear import REDUCTIONS
from .mixing import AttentionOperator, DiffusionOperator, PropagationOperator
from .slices import SlicesOperator

__all__ = [
    "REDUCTIONS",
    "AttentionOperator",
    "ChannelOperator",
    "DiffusionOperator",
    "PropagationOperator",
    "SlicesOperator",
    "SpatialOperator",
    "operator",
]


class SpatialOperator(Protocol):
    """What every mixing layer looks like to the analyses. Positions are (row, col); maps are (C, H, W)."""

    grid: tuple[int, int]
    groups: tuple[str, ...]
    exact: bool
    value: torch.Tensor
    output: torch.Tensor
    info: dict[str, Any]

    def apply(self, v: torch.Tensor, group: str | None = None) -> torch.Tensor: ...
    def adjoint(self, g: torch.Tensor, group: str | None = None) -> torch.Tensor: ...
    def row(
        self, position: tuple[int, int], group: str | None = None, channel: int | None = None, reduce: str = "mean"
    ) -> xr.DataArray: ...
    def column(
        self, position: tuple[int, int], group: str | None = None, channel: int | None = None, reduce: str = "mean"
    ) -> xr.DataArray: ...
    def rows(
        self, position: tuple[int, int], channel: int | None = None, reduce: str = "mean"
    ) -> tuple[xr.DataArray, xr.DataArray]: ...
    def columns(
        self, position: tuple[int, int], channel: int | None = None, reduce: str = "mean"
    ) -> tuple[xr.DataArray, xr.DataArray]: ...
    def matrix(
        self,
        group: str | None = None,
        channel: int | None = None,
        reduce: str = "mean",
        budget: int = 256 * 2**20,
    ) -> xr.DataArray: ...


def operator(model: VisionModel, image: Image, layer: str, inputs: dict[str, torch.Tensor] | None = None) -> Any:
    """Freeze a mixing layer at an image.

    Args:
        model: from `load_model`.
        image: from `load_image`; its size decides the grid.
        layer: a name from `model.layers()`.
        inputs: `model.mixer_inputs(image.tensor)`, if it is at hand: spares the forward pass.

    Returns:
        A SpatialOperator. That of channel attention (kind "channel") has `apply`, `adjoint` and `channel_matrix`, and
        raises ValueError where others show rows, columns or the matrix over positions.

    Raises:
        ValueError: the layer is unknown (lists near matches) or the image does not fit the model.
    """
    _, mixer = model.block(layer)
    if inputs is None:
        rows, cols = image.tensor.shape[-2:]
        model.check_size(rows, cols)
        inputs = model.mixer_inputs(image.tensor.to(model.device))
    with torch.no_grad():
        state = mixer.freeze(inputs[layer])
    info = {
        "model": model.name,
        "config": model.config,
        "weights": model.weights,
        "weights_sha256": model.weights_sha256,
        "layout": model.layout,
        "seed": model.seed,
        "layer": layer,
        "kind": mixer.kind,
        "image": image.name,
        "image_sha256": image.sha256,
        "size": tuple(image.tensor.shape[-2:]),
        "dtype": str(state.value.dtype).removeprefix("torch."),
        "device": str(state.value.device),
        "backend": choose(mixer.backend, state.value),
    }
    if isinstance(state, PropagationState):
        info |= {"merge": state.merge, "chunk": state.chunk}
        return PropagationOperator(state, info)
    info |= {"pattern": state.reading}
    if isinstance(state, DiffusionState):
        return DiffusionOperator(state, info | {"backend": state.engine})
    if isinstance(state, SlicesState):
        return SlicesOperator(state, info | {"backend": state.engine, "linearised": state.linearised})
    if isinstance(state, ChannelState):
        return ChannelOperator(state, info | {"backend": state.backend})
    if state.unpadded is not None:
        info |= {"unpadded": state.unpadded}
    return AttentionOperator(state, info)
