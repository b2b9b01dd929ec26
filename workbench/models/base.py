"""What every model of the registry has in common: named mixing layers, their features, and their frozen state.

A mixing layer moves information between positions. `Mixer.freeze` evaluates everything that the image decides (gates,
attention weights) and returns a state (states.py); given the state, mixing is linear in the values.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from workbench.names import unknown

from .states import State


class Layer(NamedTuple):
    """One layer that mixes positions: its name, kind, grid of positions, pixels per position, and groups."""

    name: str
    kind: str
    grid: tuple[int, int]
    stride: tuple[float, float]
    groups: tuple[str, ...]


class Mixer(nn.Module):
    """A layer that mixes positions. `freeze(x)` gives its state for the same input that `forward(x)` takes."""

    kind: str
    backend: str = "auto"

    def freeze(self, x: torch.Tensor) -> State:
        raise NotImplementedError

    def chosen_groups(self) -> tuple[str, ...]:
        """The names of the layer's groups: directions or heads."""
        raise NotImplementedError

    def padded(self, grid: tuple[int, int]) -> tuple[int, int]:
        """The grid that the layer mixes on, for tokens on `grid`: larger if it adds tokens of padding."""
        return grid


class _Reached(Exception):  # noqa: N818 (control flow, not an error)
    """Stops a forward pass at the layer that was asked for."""


class VisionModel(nn.Module):
    """A classifier whose position-mixing layers have names.

    Subclasses implement `forward`, `blocks` and `stage_grid`, and set `family`, `input_size` (pixels of the square
    image it was designed for) and `size_multiple` (sides must be multiples of it). `load_model` sets the rest.
    """

    family: str = ""
    name: str = ""
    #: Every setting that built the model; `load_model(model.name, **model.config)` builds it again.
    config: dict[str, Any]
    input_size: int = 224
    size_multiple: int = 1
    #: The least side in pixels, where the layers need a grid of some size.
    least_size: int = 1
    #: Where the weights came from: "random", "trained" or a file name; and their SHA-256, set by `load_model`.
    weights: str = "random"
    weights_sha256: str = ""
    #: The checkpoint layout that was found, or "" for weights that were not read from a file.
    layout: str = ""
    seed: int | None = None

    def hold_stages(self, stages: Sequence[nn.Module]) -> None:
        """Keep the stages as the submodule "layers", their name in checkpoints."""
        # Attribute access gives that name to the method `layers`; parameters and state_dict go by the registered one.
        self._modules["layers"] = nn.ModuleList(stages)

    @property
    def stages(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self._modules["layers"])

    def named_blocks(self) -> Iterator[tuple[str, Any]]:
        """("stage1.block1", its block) and so on, in the order of the forward pass."""
        for i, stage in enumerate(self.stages, 1):
            for j, block in enumerate(cast(Any, stage).blocks, 1):
                yield f"stage{i}.block{j}", block

    def blocks(self) -> dict[str, tuple[nn.Module, Mixer]]:
        """Layer name -> (its whole block, the mixer inside it), in the order of the forward pass.

        A name begins with "stage1.block1"; where a block has several mixers, the parts that they belong to follow.
        """
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def backend(self) -> str:
        """The backend that every mixing layer is asked to use."""
        return next(iter(self.blocks().values()))[1].backend

    def set_backend(self, backend: str) -> None:
        for _, mixer in self.blocks().values():
            mixer.backend = backend

    def layers(self, size: int | tuple[int, int] | None = None) -> tuple[Layer, ...]:
        """Every layer that mixes positions, in order, for an input of `size` pixels (side, or (rows, cols))."""
        rows, cols = (size, size) if isinstance(size, int) else size or (self.input_size, self.input_size)
        self.check_size(rows, cols)
        grids = self.grids(rows, cols)
        return tuple(
            Layer(name, mixer.kind, mixer.padded(grid), (rows / grid[0], cols / grid[1]), mixer.chosen_groups())
            for (name, (_, mixer)), grid in zip(self.blocks().items(), grids, strict=True)
        )

    def grids(self, rows: int, cols: int) -> list[tuple[int, int]]:
        """The grid of each layer, in order, for an input of rows x cols pixels."""
        return [
            self.stage_grid(int(name.split(".")[0].removeprefix("stage")) - 1, rows, cols) for name in self.blocks()
        ]

    def stage_grid(self, stage: int, rows: int, cols: int) -> tuple[int, int]:
        """The grid of a stage, counted from 0, for an input of rows x cols pixels."""
        raise NotImplementedError

    def check_size(self, rows: int, cols: int) -> None:
        """Raise ValueError if an image of rows x cols pixels does not fit this model."""
        m, least = self.size_multiple, max(self.size_multiple, self.least_size)
        if min(rows, cols) < least or rows % m or cols % m:
            at_least = f", at least {least}" if least > m else ""
            padded = (
                ", or with padding='keys' smaller ones" if min(rows, cols) < least and "padding" in self.config else ""
            )
            raise ValueError(
                f"{self.name} takes images whose sides are multiples of {m} pixels{at_least}{padded}; "
                f"got {rows} x {cols}."
            )

    def check_input(self, x: torch.Tensor) -> None:
        """Raise ValueError unless x is (B, 3, rows, cols) with sides that fit this model."""
        if x.ndim != 4 or x.shape[1] != 3 or not x.shape[0]:
            raise ValueError(f"{self.name} takes images as (B, 3, rows, cols); got {tuple(x.shape)}.")
        self.check_size(x.shape[2], x.shape[3])

    def block(self, layer: str) -> tuple[nn.Module, Mixer]:
        """The block and mixer of a layer by name; ValueError with the near matches if there is none."""
        blocks = self.blocks()
        if layer not in blocks:
            raise ValueError(unknown("layer", layer, blocks, of=self.name))
        return blocks[layer]

    def features(self, x: torch.Tensor, layer: str) -> torch.Tensor:
        """The output of a layer's block: (B, 3, H, W) -> (B, C, h, w)."""
        block, _ = self.block(layer)
        return self.as_map(_output_of(block, self, x))

    def mixer_inputs(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """What every mixing layer receives for x, by layer name, from one forward pass without gradients."""
        found: dict[str, torch.Tensor] = {}
        handles = [
            mixer.register_forward_pre_hook(_remember(found, name)) for name, (_, mixer) in self.blocks().items()
        ]
        try:
            with torch.no_grad():
                self(x)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def as_map(self, tokens: torch.Tensor) -> torch.Tensor:
        """A block's output as (B, C, h, w); models whose blocks work on (B, h, w, C) override this."""
        return tokens


def _remember(found: dict[str, torch.Tensor], name: str) -> Callable[..., None]:
    asker = threading.get_ident()  # a model may run for another thread at the same time

    def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if threading.get_ident() == asker:
            found[name] = args[0]

    return hook


def _output_of(module: nn.Module, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Run the model up to `module` and return its output, gradients included."""
    caught: list[torch.Tensor] = []
    asker = threading.get_ident()

    def hook(_: nn.Module, args: Any, output: torch.Tensor) -> None:
        if threading.get_ident() == asker:
            caught.append(output)
            raise _Reached

    handle = module.register_forward_hook(hook)
    try:
        model(x)
    except _Reached:
        pass
    finally:
        handle.remove()
    return caught[0]
