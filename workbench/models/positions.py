"""Position encoding by convolution, for the families whose patterns have no table of position bias.

Attention without a bias does not see where a key lies: permuting the keys of a query changes nothing. A depthwise
convolution before each stage tells positions apart by their neighbours and by the zeros outside the map, on maps of
any size. It is a layer of its own: no mixer, and no part of a mixer's state.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .base import Mixer
from .hierarchy import Hierarchy


class PositionEncoding(nn.Module):
    """x + a depthwise 3 x 3 convolution of x, on tokens (B, H, W, C).

    Source: conditional position encodings (arXiv 2102.10882), section 3.3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class PositionedHierarchy(Hierarchy):
    """A `Hierarchy` with a position encoding before each stage. Arguments and errors as there."""

    def __init__(self, attention: Callable[[int, int, int, int], Mixer], **settings: Any) -> None:
        super().__init__(attention, **settings)
        self.positions = nn.ModuleList(PositionEncoding(channels) for channels in settings["dims"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits: (B, 3, H, W) -> (B, num_classes)."""
        self.check_input(x)
        x = self.patch_embed(x)
        for positions, stage in zip(self.positions, self.stages, strict=True):
            x = stage(positions(x))
        return self.head(self.norm(x).mean((1, 2)))
