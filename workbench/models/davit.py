"""DaViT: a hierarchical image classifier whose blocks attend over positions inside windows, then over channels.

Paper: DaViT: Dual Attention Vision Transformers, arXiv 2204.03645 (ECCV 2022).
Source: written from the paper's formulas and the published names and shapes of its tensors; no upstream code was used.
Upstream code and weights are under the MIT licence; weights are loaded from a user's file.
Licence of this file: Apache-2.0.

davit_tiny has the published configuration with windows of 7. davit_nano is our own small variant for 64 x 64 images; it
has no counterpart upstream.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from kernels.attention import Pattern, block

from .attention import PADDINGS, Padding, SelfAttention
from .base import Mixer, VisionModel
from .checks import check_choice, check_heads, check_stages, check_whole
from .parts import Mlp
from .positions import PositionEncoding
from .registry import register
from .states import ChannelState, to_map


class WindowAttention(SelfAttention):
    """Softmax attention inside windows that start at the map's corner, without shifts and without position bias.

    Args:
        channels: channels of x, (B, H, W, channels).
        heads: attention heads; d = channels / heads.
        window: positions per side of a window.
        padding: "none": windows at the border are smaller; "keys": see `SelfAttention`.

    Source: DaViT (arXiv 2204.03645), section 3.2.
    """

    def __init__(self, channels: int, heads: int, window: int, padding: Padding = "none") -> None:
        super().__init__(channels, heads, padding)
        self.window = window

    def pattern(self, rows: int, cols: int) -> Pattern:
        return block(self.window)

    def padded(self, grid: tuple[int, int]) -> tuple[int, int]:
        if self.padding == "none":
            return grid
        return -(-grid[0] // self.window) * self.window, -(-grid[1] // self.window) * self.window


class ChannelAttention(Mixer):
    """Attention of the channels of each head over each other, from all positions, on tokens (B, H, W, channels).

        A = softmax over the last axis of (d ** -0.5 K)^T V,  (d, d) for each head;    out[p] = A q[p]

    K and V hold the keys and values of all positions, (N, d), so that every position contributes to A, and A acts on
    each position alone. It runs as products of PyTorch on every backend.

    Args:
        channels: channels of x.
        heads: groups of channels; d = channels / heads.

    Source: DaViT (arXiv 2204.03645), section 3.3.
    """

    kind = "channel"

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def freeze(self, x: torch.Tensor) -> ChannelState:
        """Everything that the image decides, for tokens x (B, H, W, channels): the matrices A."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(3)
        keys, values = (t.flatten(1, 2).transpose(1, 2) for t in (k, v))  # (B, heads, N, d)
        matrix = (keys.transpose(-1, -2) * q.shape[-1] ** -0.5) @ values
        return ChannelState(to_map(q), matrix.softmax(-1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = self.freeze(x)
        return self.proj(state.mix(state.value).permute(0, 2, 3, 1))

    def chosen_groups(self) -> tuple[str, ...]:
        return tuple(f"head {i}" for i in range(self.heads))


class DualBlock(nn.Module):
    """One half of a dual block: x + attn(norm1(x)), then x + mlp(norm2(x)), a position encoding before each."""

    def __init__(self, channels: int, attn: Mixer) -> None:
        super().__init__()
        self.cpe = nn.ModuleList(PositionEncoding(channels) for _ in range(2))
        self.norm1 = nn.LayerNorm(channels)
        self.attn = attn
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.cpe[0](x)
        x = x + self.attn(self.norm1(x))
        x = self.cpe[1](x)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """The step to a stage's grid, a convolution of stride `step`: (B, H, W, C) -> (B, H / step, W / step, following).

    The first one has overlapping patches of 2 step - 1 pixels and a norm after it; the others have patches of `step`
    positions and a norm before.
    """

    def __init__(self, channels: int, following: int, step: int, first: bool) -> None:
        super().__init__()
        kernel, padding = (2 * step - 1, step - 1) if first else (step, 0)
        self.first = first
        self.proj = nn.Conv2d(channels, following, kernel, step, padding)
        self.norm = nn.LayerNorm(following if first else channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.first:
            x = self.norm(x)
        x = self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.norm(x) if self.first else x


@register("davit_tiny", dims=(96, 192, 384, 768), depths=(1, 1, 3, 1), heads=(3, 6, 12, 24))
@register("davit_nano", dims=(48, 96), depths=(1, 1), heads=(3, 6), window=8, patch=2, num_classes=10, input_size=64)
class DaViT(VisionModel):
    """A DaViT classifier: patch embeddings, stages of dual blocks, the mean over positions, a norm, a linear head.

    A dual block is two: "stage1.block1.spatial" attends over positions, "stage1.block1.channel" over channels. Where a
    grid is no multiple of the window, the last windows are smaller, or filled up with tokens of padding that are keys
    like any other (padding="keys", the rule of the released weights).

    Args:
        dims: channels of each stage.
        depths: dual blocks of each stage.
        heads: heads of each stage, of both attentions.
        num_classes: outputs of the head.
        window: positions per side of a window.
        patch: pixels per position of the first stage, along each side.
        input_size: side in pixels of the images that it was designed for.
        padding: "none" | "keys".

    Raises:
        ValueError: a setting is out of range.

    Source: DaViT (arXiv 2204.03645), section 3.
    """

    family = "davit"
    name = "davit"

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        num_classes: int = 1000,
        window: int = 7,
        patch: int = 4,
        input_size: int = 224,
        padding: Padding = "none",
    ) -> None:
        super().__init__()
        check_stages(dims=dims, depths=depths, heads=heads)
        check_heads(dims, heads)
        check_whole(num_classes=num_classes, window=window, patch=patch, input_size=input_size)
        check_choice("padding", padding, PADDINGS)
        self.input_size, self.patch = input_size, patch
        self.size_multiple = patch * 2 ** (len(dims) - 1)
        before = (3, *dims[:-1])
        self.patch_embeds = nn.ModuleList(
            PatchEmbed(channels, following, patch if i == 0 else 2, first=i == 0)
            for i, (channels, following) in enumerate(zip(before, dims, strict=True))
        )
        self.main_blocks = nn.ModuleList(
            nn.ModuleList(_dual(channels, count, window, padding) for _ in range(depth))
            for channels, depth, count in zip(dims, depths, heads, strict=True)
        )
        self.norms = nn.LayerNorm(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits: (B, 3, H, W) -> (B, num_classes)."""
        self.check_input(x)
        x = x.permute(0, 2, 3, 1)
        for embed, stage in zip(self.patch_embeds, self.main_blocks, strict=True):
            x = embed(x)
            for dual in cast(nn.ModuleList, stage):
                x = dual(x)
        return self.head(self.norms(x.mean((1, 2))))

    def blocks(self) -> dict[str, tuple[nn.Module, Mixer]]:
        found: dict[str, tuple[nn.Module, Mixer]] = {}
        for i, stage in enumerate(self.main_blocks, 1):
            for j, dual in enumerate(cast(nn.ModuleList, stage), 1):
                for part, half in zip(("spatial", "channel"), cast(nn.Sequential, dual), strict=True):
                    found[f"stage{i}.block{j}.{part}"] = half, cast(Mixer, half.attn)
        return found

    def stage_grid(self, stage: int, rows: int, cols: int) -> tuple[int, int]:
        step = self.patch * 2**stage
        return rows // step, cols // step

    def as_map(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.permute(0, 3, 1, 2)


def _dual(channels: int, heads: int, window: int, padding: Padding) -> nn.Sequential:
    """A dual block: attention over positions, then over channels."""
    spatial = WindowAttention(channels, heads, window, padding)
    return nn.Sequential(DualBlock(channels, spatial), DualBlock(channels, ChannelAttention(channels, heads)))
