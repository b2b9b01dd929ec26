"""What an attribution runs on: a private stand-in for the model, and the score of a class or of a unit in it.

Captum hangs hooks on modules and keeps tensors in their attributes, and a served model may be running for another
thread at that moment. A stand-in has modules of its own that share the memory of every parameter and buffer: what is
hooked there, nobody else sees, no gradient reaches a parameter, and evaluation mode needs no switching back.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from workbench.models.base import VisionModel
from workbench.names import unknown

from .field_gradient import Cancel, Cancelled, poll_passes, shape_of

Progress = Callable[[int, int], None] | None


class Watch:
    """Counts the images that were passed through the model, and asks whether they are still wanted."""

    def __init__(self, progress: Progress = None, cancelled: Cancel = None) -> None:
        self.progress, self.cancelled = progress, cancelled
        self.planned = self.done = 0

    def plan(self, images: int) -> None:
        """More passes are to come than was known."""
        self.planned += images

    def passed(self, images: int) -> None:
        self.done += images
        self.poll()
        if self.progress is not None:
            self.progress(self.done, max(self.planned, self.done))

    def poll(self) -> None:
        """Raise Cancelled if the caller wants no more."""
        if self.cancelled is not None and self.cancelled():
            raise Cancelled


class _Reached(Exception):  # noqa: N818 (control flow, not an error)
    """Ends a forward pass at the layer of the unit, with the layer's map."""

    def __init__(self, features: torch.Tensor) -> None:
        self.features = features


def stand_in(model: nn.Module) -> nn.Module:
    """The same tree of modules with hooks and flags of its own, in evaluation mode; parameters share their memory.

    Parameters ask for no gradient in it. Those in 16 bits are copied into 32, where small gradients are not lost.
    """
    made: dict[nn.Module, nn.Module] = {}

    def of(module: nn.Module) -> nn.Module:
        if module not in made:
            made[module] = new = module.__new__(type(module))
            own = module.__dict__.copy()
            # A module keeps its hooks in a dozen dictionaries, all named so.
            own |= {name: held.copy() for name, held in own.items() if "hooks" in name and isinstance(held, dict)}
            own["_parameters"] = {name: _frozen(tensor) for name, tensor in module._parameters.copy().items()}
            own["_buffers"] = {name: _frozen(tensor) for name, tensor in module._buffers.copy().items()}
            own["_modules"] = {name: child and of(child) for name, child in module._modules.copy().items()}
            own["training"] = False
            new.__dict__.update(own)
        return made[module]

    return of(model)


def _frozen(tensor: torch.Tensor | None) -> torch.Tensor | None:
    if tensor is None:
        return None
    tensor = tensor.detach()
    if tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.float()
    # Autograd cannot save a tensor that was made in inference mode.
    return tensor.clone() if tensor.is_inference() else tensor


class Subject(nn.Module):
    """What is explained: (B, 3, H, W) -> (B,), the score of a class or of a unit in each image.

    Args:
        model: a VisionModel, or any module that gives (B, classes), or whose submodules give maps (B, C, h, w).
        watch: is told of every pass, and polled in every module's forward and backward pass.
        stop: the layer of the unit: passes end there. None: the score is of a class.
        shown: the layer whose map goes through `tap`, the module that Captum's layer methods are given.
    """

    def __init__(self, model: nn.Module, watch: Watch, stop: str | None = None, shown: str | None = None) -> None:
        super().__init__()
        self.model, self.tap, self.watch = stand_in(model), nn.Identity(), watch
        #: The score of each image, from the logits (B, classes) or the layer's map (B, C, h, w).
        self.pick: Callable[[torch.Tensor], torch.Tensor] = lambda outputs: outputs
        self.tapped = False
        if watch.cancelled is not None:
            for module in self.model.modules():
                module.register_forward_hook(self._polling)
        # In this order: where both are one layer, the map goes through the tap first.
        if shown is not None:
            self._block(shown).register_forward_hook(self._through_tap(shown))
        if stop is not None:
            self._block(stop).register_forward_hook(self._stopping(stop))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pick(self.outputs(x))

    def outputs(self, x: torch.Tensor) -> torch.Tensor:
        """What `pick` takes: logits, or the map of the unit's layer."""
        self.watch.poll()
        try:
            found = self.model(x.clone())  # some modules change what they are given
        except _Reached as reached:
            found = reached.features
        self.watch.passed(len(x))
        return found

    def layers(self) -> list[str]:
        """The names of the layers, in the order of the forward pass for a VisionModel."""
        return layer_names(self.model)

    def _block(self, layer: str) -> nn.Module:
        if isinstance(self.model, VisionModel):
            return self.model.block(layer)[0]
        if layer not in self.layers():
            raise ValueError(unknown("layer", layer, self.layers(), of=name_of(self.model)))
        return self.model.get_submodule(layer)

    def _map(self, layer: str, output: Any) -> torch.Tensor:
        """A block's output as (B, C, h, w)."""
        found = self.model.as_map(output) if isinstance(self.model, VisionModel) else output
        if not isinstance(found, torch.Tensor) or found.ndim != 4:
            raise ValueError(
                f"A layer must give a map (B, C, h, w); {layer!r} gives {shape_of(found)}: name another layer."
            )
        return found

    def _through_tap(self, layer: str) -> Callable[..., torch.Tensor]:
        back = self._from_map()

        def hook(_: nn.Module, args: Any, output: Any) -> torch.Tensor:
            self.tapped = True
            return self.tap(self._map(layer, output)).permute(back)

        return hook

    def _from_map(self) -> tuple[int, ...]:
        """The order of dimensions that makes a map (B, C, h, w) a block's output again."""
        if not isinstance(self.model, VisionModel):
            return 0, 1, 2, 3
        sizes = (2, 3, 5, 7)  # all different, so that the map's shape tells where each dimension went
        moved = self.model.as_map(torch.empty(sizes, device="meta")).shape
        return tuple(moved.index(size) for size in sizes)

    def _stopping(self, layer: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            raise _Reached(self._map(layer, output))

        return hook

    def _polling(self, _: nn.Module, args: Any, output: Any) -> None:
        poll_passes(output, self.watch.poll)


def layer_names(model: nn.Module) -> list[str]:
    """The layers of a model by name: those that mix positions, or the submodules of a plain module."""
    if isinstance(model, VisionModel):
        return list(model.blocks())
    return [name for name, _ in model.named_modules() if name]


def name_of(model: nn.Module) -> str:
    return model.name if isinstance(model, VisionModel) else type(model).__name__
