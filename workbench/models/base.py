"""What every model of the registry has in common: named mixing layers, their features, and their frozen state.

A mixing layer moves information between positions. `Mixer.freeze` evaluates everything that the image decides (gates,
attention weights) and returns a state; given the state, mixing is linear in the values. The forward pass and the
pictures of `workbench.operators` both go through that state, so what is drawn is what ran.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from kernels.attention import Pattern, attend
from kernels.propagation import DIRECTIONS, propagate
from workbench.names import unknown


class Layer(NamedTuple):
    """One layer that mixes positions: its name, kind, grid of positions, pixels per position, and groups."""

    name: str
    kind: str
    grid: tuple[int, int]
    stride: tuple[float, float]
    groups: tuple[str, ...]


@dataclass(frozen=True)
class PropagationState:
    """A GSPN mixing layer frozen at an image.

    value (B, C, H, W); gates (K, 3, B, C or 1, H, W); lam, u, skip (K, B, C, H, W); weight (K,), the learned weight of
    each direction; merge "aligned" or "released"; chunk: lines per chunk or None.
    """

    value: torch.Tensor
    gates: torch.Tensor
    lam: torch.Tensor
    u: torch.Tensor
    skip: torch.Tensor
    weight: torch.Tensor
    merge: str
    chunk: int | None
    backend: str = "auto"
    groups: tuple[str, ...] = DIRECTIONS

    def contributions(self, v: torch.Tensor) -> torch.Tensor:
        """What each direction adds to the output: m_k times `modulated`, (K, B, C, H, W)."""
        return self.weight.view(-1, 1, 1, 1, 1) * self.modulated(v)

    def modulated(self, v: torch.Tensor) -> torch.Tensor:
        """Each direction's pass, not yet weighted: (B, C, H, W) or a v for each, (K, B, C, H, W) -> (K, B, C, H, W).

        aligned:  U_k P_k^-1 scan(P_k v) + D_k v, everything in image coordinates.
        released: U_k scan(P_k v) + D_k P_k v, where nothing is carried back to image coordinates.
        """
        directions = self.groups
        if self.merge == "released":
            v, directions = to_released_frames(v), ("left_right",) * len(self.groups)
        h = propagate(v, self.gates, self.lam, directions=directions, chunk=self.chunk, backend=self.backend)
        return torch.addcmul(self.skip * v, self.u, h)

    def mix(self, v: torch.Tensor) -> torch.Tensor:
        """The merged linear map, the sum of the contributions: (B, C, H, W) -> (B, C, H, W)."""
        # Weighting and summing in one step reads the K maps once.
        return torch.tensordot(self.weight, self.modulated(v), dims=1)


def to_released_frames(v: torch.Tensor) -> torch.Tensor:
    """[v, v^T, flip_W(v), flip_W(v^T)]: (B, C, N, N), or one for each, (4, B, C, N, N) -> (4, B, C, N, N).

    Raises:
        ValueError: the map is not square.
    """
    if v.shape[-1] != v.shape[-2]:
        raise ValueError(
            f"merge='released' transposes the map and needs a square one; got {tuple(v.shape[-2:])}: "
            "use a square image or merge='aligned'."
        )
    a, b, c, d = v if v.ndim == 5 else (v, v, v, v)
    return torch.stack([a, b.transpose(-1, -2), c.flip(-1), d.transpose(-1, -2).flip(-1)])


@dataclass(frozen=True)
class AttentionState:
    """A window-attention layer frozen at an image.

    q, k, v (B, H, W, heads, d); pattern: which keys a query reads; bias (heads, 2 kh - 1, 2 kw - 1) or None.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    pattern: Pattern
    bias: torch.Tensor | None
    scale: float
    backend: str = "auto"

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(f"head {i}" for i in range(self.q.shape[3]))

    @property
    def value(self) -> torch.Tensor:
        """v as a map, (B, heads * d, H, W)."""
        return to_map(self.v)

    def mix(self, v: torch.Tensor) -> torch.Tensor:
        """The merged linear map, every head on its own channels: (B, heads * d, H, W) -> the same shape."""
        tokens = v.permute(0, 2, 3, 1).unflatten(3, self.v.shape[3:])
        return to_map(self.mix_tokens(tokens))

    def mix_tokens(self, v: torch.Tensor) -> torch.Tensor:
        """The same in the kernel's layout: (B, H, W, heads, d) -> (B, H, W, heads, d)."""
        return attend(self.q, self.k, v, self.pattern, self.bias, self.scale, backend=self.backend)

    def row(self, position: tuple[int, int]) -> torch.Tensor:
        """The softmax row of one query, recomputed from q and k: (heads, H, W), 0 where the query does not read."""
        height, width = self.q.shape[1:3]
        rows, cols = torch.tensor(self.pattern.keys(position, (height, width)), device=self.q.device).unbind(1)
        logits = torch.einsum("hd,nhd->hn", self.q[0, position[0], position[1]] * self.scale, self.k[0, rows, cols])
        if self.bias is not None:
            down = position[0] - rows + self.bias.shape[1] // 2
            right = position[1] - cols + self.bias.shape[2] // 2
            logits = logits + self.bias[:, down, right]
        maps = logits.new_zeros(logits.shape[0], height, width)
        maps[:, rows, cols] = logits.softmax(1)
        return maps


def to_map(tokens: torch.Tensor) -> torch.Tensor:
    """(B, H, W, heads, d) -> (B, heads * d, H, W)."""
    return tokens.flatten(3).permute(0, 3, 1, 2)


State = PropagationState | AttentionState


class Mixer(nn.Module):
    """A layer that mixes positions. `freeze(x)` gives its state for the same input that `forward(x)` takes."""

    kind: str
    backend: str = "auto"

    def freeze(self, x: torch.Tensor) -> State:
        raise NotImplementedError

    def chosen_groups(self) -> tuple[str, ...]:
        """The names of the layer's groups: directions or heads."""
        raise NotImplementedError


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
        """Layer name -> (its whole block, the mixer inside it), in the order of the forward pass."""
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
            Layer(name, mixer.kind, grid, (rows / grid[0], cols / grid[1]), mixer.chosen_groups())
            for (name, (_, mixer)), grid in zip(self.blocks().items(), grids, strict=True)
        )

    def grids(self, rows: int, cols: int) -> list[tuple[int, int]]:
        """The grid of each layer, in order, for an input of rows x cols pixels."""
        stages = cast(Any, self.stages)
        return [self.stage_grid(i, rows, cols) for i, stage in enumerate(stages) for _ in stage.blocks]

    def stage_grid(self, stage: int, rows: int, cols: int) -> tuple[int, int]:
        """The grid of a stage, counted from 0, for an input of rows x cols pixels."""
        raise NotImplementedError

    def check_size(self, rows: int, cols: int) -> None:
        """Raise ValueError if an image of rows x cols pixels does not fit this model."""
        m = self.size_multiple
        if rows < m or cols < m or rows % m or cols % m:
            raise ValueError(f"{self.name} takes images whose sides are multiples of {m} pixels; got {rows} x {cols}.")

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
    def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        found[name] = args[0]

    return hook


def _output_of(module: nn.Module, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Run the model up to `module` and return its output, gradients included."""
    caught: list[torch.Tensor] = []

    def hook(_: nn.Module, args: Any, output: torch.Tensor) -> None:
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
