"""Frozen mixing layers of GSPN's ancestors: SCNN's slices, linearised at the image, and CSPN's diffusion.

SPN needs no state of its own kind: it is a `PropagationState` (ancestors.py).
"""

from dataclasses import dataclass
from itertools import pairwise

import torch

from kernels.backends import choose_without_triton
from kernels.isotropic import diffuse
from kernels.slice_convolution import slice_convolve

#: The group of what a pass-by-pass map leaves of its input as it was.
IDENTITY = "identity"


@dataclass(frozen=True)
class SlicesState:
    """An SCNN mixing layer at an image: its derivative there, which is linear, with every ReLU held as it was.

    There is no bias, so the layer is positively homogeneous, and its derivative applied to `value` is what the layer
    makes of it. Channels mix. The passes run one after the other, J = J_K ... J_1, and J_k - I is what pass k adds, so

        J = I + (J_1 - I) + (J_2 - I) J_1 + ... + (J_K - I) J_{K-1} ... J_1,

    whose terms are the groups: "identity", and for each direction what its pass adds to what the passes before left.

    value (B, C, H, W); weight (K, C, C, k); active (K, B, C, H, W) bool; directions: K names, in order.
    """

    value: torch.Tensor
    weight: torch.Tensor
    active: torch.Tensor
    directions: tuple[str, ...]
    backend: str = "auto"
    unpadded: tuple[int, int] | None = None

    @property
    def groups(self) -> tuple[str, ...]:
        return (IDENTITY, *self.directions)

    @property
    def engine(self) -> str:
        """The backend that runs it."""
        return choose_without_triton("slice_convolve", self.backend, self.value)

    @property
    def reading(self) -> str:
        """Which positions are read, in words."""
        return f"slices of {self.weight.shape[-1]} positions, {len(self.directions)} passes in turn"

    @property
    def linearised(self) -> str:
        """Why the map is a linearisation, in words."""
        return "linearised at the image: every ReLU held as it was there"

    @property
    def flops(self) -> float:
        """Operations: for each pass, channel and position C k multiply-adds, and an addition."""
        passes, channels, _, size = self.weight.shape
        return float(passes * self.value.numel()) * (2 * channels * size + 1)

    @property
    def least_values(self) -> float:
        """The least numbers read and written: the map, the weights, and the output."""
        return 2.0 * self.value.numel() + self.weight.numel()

    def first(self, v: torch.Tensor, passes: int) -> torch.Tensor:
        """The map after the first passes, J_passes ... J_1 v: (B, C, H, W) -> (B, C, H, W); any B if frozen at one."""
        if passes == 0:
            return v
        weight, active = self.weight[:passes], self.active[:passes]
        return slice_convolve(v, weight, active, directions=self.directions[:passes], backend=self.backend)

    def mix(self, v: torch.Tensor) -> torch.Tensor:
        """The merged linear map J: (B, C, H, W) -> (B, C, H, W)."""
        return self.first(v, len(self.directions))

    def contributions(self, v: torch.Tensor) -> torch.Tensor:
        """What each group adds to the output: (B, C, H, W) -> (groups, B, C, H, W)."""
        maps = [v]
        for k, direction in enumerate(self.directions):
            weight, active = self.weight[k : k + 1], self.active[k : k + 1]
            maps.append(slice_convolve(maps[-1], weight, active, directions=(direction,), backend=self.backend))
        return torch.stack([v, *(after - before for before, after in pairwise(maps))])

    def back(self, g: torch.Tensor) -> torch.Tensor:
        """The transpose of every group's map, of g: (B, C, H, W) -> (groups, B, C, H, W)."""
        maps = [g]
        for passes in range(1, len(self.directions) + 1):
            start = torch.zeros_like(g).requires_grad_()
            with torch.enable_grad():
                end = self.first(start, passes)
            maps.append(torch.autograd.grad(end, start, g)[0])
        return torch.stack([g, *(after - before for before, after in pairwise(maps))])


@dataclass(frozen=True)
class DiffusionState:
    """A CSPN mixing layer frozen at an image: a linear map, channel by channel, with one group.

    value (B, C, H, W); logits (B, 8, C or 1, H, W), in the order of `kernels.isotropic.NEIGHBOURS`; steps: how often.
    """

    value: torch.Tensor
    logits: torch.Tensor
    steps: int
    backend: str = "auto"
    groups: tuple[str, ...] = ("isotropic",)
    unpadded: tuple[int, int] | None = None

    @property
    def engine(self) -> str:
        """The backend that runs it."""
        return choose_without_triton("diffuse", self.backend, self.value)

    @property
    def reading(self) -> str:
        """Which positions are read, in words."""
        return f"{self.steps} steps to the 8 neighbours"

    @property
    def flops(self) -> float:
        """Operations: 16 to normalise and 9 to sum the weights once, and 16 for each step, channel and position."""
        return 25.0 * self.logits[:, 0].numel() + 16.0 * self.steps * self.value.numel()

    @property
    def least_values(self) -> float:
        """The least numbers read and written: the map, eight logits, and the output."""
        return 2.0 * self.value.numel() + self.logits.numel()

    def mix(self, v: torch.Tensor) -> torch.Tensor:
        """The linear map: (B, C, H, W) -> (B, C, H, W)."""
        return diffuse(v, self.logits, steps=self.steps, backend=self.backend)

    def contributions(self, v: torch.Tensor) -> torch.Tensor:
        """What the one group adds, which is all: (B, C, H, W) or (1, B, C, H, W) -> (1, B, C, H, W)."""
        return self.mix(v[0] if v.ndim == 5 else v).unsqueeze(0)
