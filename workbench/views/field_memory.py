"""Whether the gradient of a picture fits into memory, before it is tried: a process that runs out of it is killed."""

import os
from weakref import WeakKeyDictionary

import torch
from torch.autograd.graph import saved_tensors_hooks

from workbench.models.base import VisionModel

#: The share of the machine's memory that the gradient of one picture may take.
SHARE = 0.5

#: What a pass holds at its peak, over what autograd keeps for the way back: gradients and what kernels work in.
PEAK = 1.5

#: Sides in pixels at which what autograd keeps is counted: the first that the model takes. They fit everywhere.
COUNTED_AT = (224, 256, 128, 64)

#: Model -> layer -> what autograd keeps, in bytes a pixel.
_kept: WeakKeyDictionary[VisionModel, dict[str, float]] = WeakKeyDictionary()


def check_memory(model: VisionModel, layer: str, side: int) -> None:
    """Refuse a picture of side x side pixels whose gradient would take more than `SHARE` of the memory.

    What autograd keeps is counted in one pass over a small picture, and grows with the number of pixels.

    Raises:
        ValueError: it would; says how much.
    """
    counted_at = next((small for small in COUNTED_AT if _takes(model, small)), side)
    if side <= counted_at:
        return
    known = _kept.setdefault(model, {})
    if layer not in known:
        known[layer] = _saved_bytes(model, layer, counted_at) / counted_at**2
    needed, there = PEAK * known[layer] * side**2, _memory(model.device)
    if needed > SHARE * there:
        raise ValueError(
            f"The gradient of {model.name} {layer} at {side} x {side} pixels takes about {needed / 1e9:.0f} GB, and "
            f"this machine has {there / 1e9:.0f} GB: choose a smaller picture or an earlier layer."
        )


def _takes(model: VisionModel, side: int) -> bool:
    try:
        model.check_size(side, side)
    except ValueError:
        return False
    return True


def _saved_bytes(model: VisionModel, layer: str, side: int) -> int:
    """The size of all that autograd keeps of a pass over side x side pixels, but for the weights, which do not grow."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.zeros(1, 3, side, side, device=model.device, requires_grad=True)
    with torch.enable_grad(), saved_tensors_hooks(count, lambda tensor: tensor):
        model.features(x, layer)
    return sum(found.values())


def _memory(device: torch.device) -> int:
    """The memory of a device in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
