"""The attention layer that most families of the registry use: queries, keys and values of one map, and a pattern."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from kernels.attention import Pattern

from .base import Mixer
from .states import AnyAttention, AttentionState

Padding = Literal["none", "keys"]
PADDINGS = ("none", "keys")


class SelfAttention(Mixer):
    """Softmax attention over a pattern, on tokens (B, H, W, channels), with one linear map before and one after.

    Subclasses say which keys a query reads (`pattern`), and may have a relative position bias (`bias`) and padding.
    With padding="keys" tokens of zeros are added below and on the right up to the grid of `padded`, after the norm and
    before the projections, so that they are keys like any other, with the bias of the projection as key; they are cut
    off again at the end (the rule of timm, and of NAT and DaViT). With "none" nothing is added.

    Args:
        channels: channels of x.
        heads: attention heads; d = channels / heads.
        padding: "none" | "keys".
    """

    kind = "attention"
    #: How the bias is read, see `kernels.attention.attend`.
    relative = "query-key"

    def __init__(self, channels: int, heads: int, padding: Padding = "none") -> None:
        super().__init__()
        self.heads, self.padding = heads, padding
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def pattern(self, rows: int, cols: int) -> Pattern:
        """The keys that each query reads on a grid of rows x cols."""
        raise NotImplementedError

    def bias(self, pattern: Pattern) -> torch.Tensor | None:
        """The bias tables for a pattern, (heads, 2 kh - 1, 2 kw - 1), or None."""
        return None

    def freeze(self, x: torch.Tensor) -> AnyAttention:
        """Everything that the image decides, for tokens x (B, H, W, channels)."""
        grid = x.shape[1], x.shape[2]
        rows, cols = self.padded(grid)
        if (rows, cols) != grid:  # padding by nothing copies
            x = F.pad(x, (0, 0, 0, cols - grid[1], 0, rows - grid[0]))
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(3)
        pattern = self.pattern(rows, cols)
        unpadded = None if (rows, cols) == grid else grid
        scale = q.shape[-1] ** -0.5
        return AttentionState(q, k, v, pattern, self.bias(pattern), scale, self.backend, self.relative, unpadded)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = self.freeze(x)
        assert isinstance(state, AttentionState)
        mixed = state.mix_tokens(state.v).flatten(3)
        return self.proj(mixed[:, : x.shape[1], : x.shape[2]])

    def chosen_groups(self) -> tuple[str, ...]:
        return tuple(f"head {i}" for i in range(self.heads))
