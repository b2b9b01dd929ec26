"""Swin Transformer: a hierarchical image classifier whose blocks attend inside windows, every other block shifted.

Paper: Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, arXiv 2103.14030 (ICCV 2021).
Source: written from the paper's formulas and the published names and shapes of its tensors; no upstream code was used.
Upstream code and weights are under the MIT licence; weights are loaded from a user's file.
Licence of this file: Apache-2.0.

swin_tiny, swin_small and swin_base have the published configurations with windows of 7. swin_nano is our own small
variant for 64 x 64 images, about as large as gspn_nano; it has no counterpart upstream.
"""

from collections.abc import Sequence

import torch
from torch import nn

from kernels.attention import Pattern, swin

from .base import AttentionState, Mixer, VisionModel
from .checks import check_stages, check_whole
from .parts import Mlp, Stage
from .registry import register


class WindowAttention(Mixer):
    """Softmax attention inside windows, with a learned bias for every offset and head.

    logit[p, q] = d ** -0.5 query[p] . key[q] + T[p - q], over the keys q in the window of p; the window rule follows
    the map: windows of ws = min(window, H, W), shifted only if the map is larger than one window. A shifted block is
    the same windows with an offset and smaller ones at the border, so nothing is rolled, padded or masked.

    Args:
        channels: channels of x, (B, H, W, channels).
        heads: attention heads; d = channels / heads.
        window: positions per side of a window.
        shift: positions that the windows are moved by, 0 for none.

    Source: Swin (arXiv 2103.14030), section 3.2 and equation 4.
    """

    kind = "attention"

    def __init__(self, channels: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def freeze(self, x: torch.Tensor) -> AttentionState:
        """Everything that the image decides, for tokens x (B, H, W, channels)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(3)
        pattern = self.pattern(x.shape[1], x.shape[2])
        return AttentionState(q, k, v, pattern, self.bias(pattern), q.shape[-1] ** -0.5, self.backend)

    def pattern(self, rows: int, cols: int) -> Pattern:
        """The keys that each query reads on a grid of rows x cols."""
        side = min(rows, cols)
        return swin(min(self.window, side), self.shift if side > self.window else 0)

    def bias(self, pattern: Pattern) -> torch.Tensor:
        """The bias table as (heads, 2 ws - 1, 2 ws - 1); a smaller window meets only the offsets in its middle."""
        full, kept = 2 * self.window - 1, 2 * pattern.rows.kernel - 1
        first = (full - kept) // 2
        table = self.relative_position_bias_table.view(full, full, self.heads).permute(2, 0, 1)
        return table[:, first : first + kept, first : first + kept]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = self.freeze(x)
        return self.proj(state.mix_tokens(state.v).flatten(3))

    def chosen_groups(self) -> tuple[str, ...]:
        return tuple(f"head {i}" for i in range(self.heads))


class Block(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)), on tokens (B, H, W, C)."""

    def __init__(self, channels: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window, shift)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Concatenate each 2 x 2 of tokens and project: (B, H, W, C) -> (B, H / 2, W / 2, 2 C)."""

    def __init__(self, channels: int, following: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, following, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Order of the four: down the first column, then down the second.
        quads = [x[:, row::2, col::2] for col in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(quads, -1)))


class PatchEmbed(nn.Module):
    """One token per patch: (B, 3, H, W) -> (B, H / patch, W / patch, C)."""

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, patch, patch)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


@register("swin_tiny", dims=(96, 192, 384, 768), depths=(2, 2, 6, 2), heads=(3, 6, 12, 24))
@register("swin_small", dims=(96, 192, 384, 768), depths=(2, 2, 18, 2), heads=(3, 6, 12, 24))
@register("swin_base", dims=(128, 256, 512, 1024), depths=(2, 2, 18, 2), heads=(4, 8, 16, 32))
@register("swin_nano", dims=(48, 96), depths=(2, 2), heads=(3, 6), window=8, patch=2, num_classes=10, input_size=64)
class Swin(VisionModel):
    """A Swin classifier: patch embedding, stages of window attention with patch merging between them, a linear head.

    Images need not have the side that the model was designed for. Where a grid is no multiple of the window, the last
    windows are smaller; they are neither padded nor masked.

    Args:
        dims: channels of each stage.
        depths: blocks of each stage; every second block shifts its windows by half a window.
        heads: attention heads of each stage.
        num_classes: outputs of the head.
        window: positions per side of a window.
        patch: pixels per side of a patch.
        input_size: side in pixels of the images that it was designed for.

    Raises:
        ValueError: a setting is out of range.

    Source: Swin (arXiv 2103.14030), section 3.3.
    """

    family = "swin"
    name = "swin"

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
    ) -> None:
        super().__init__()
        check_stages(dims=dims, depths=depths, heads=heads)
        check_whole(num_classes=num_classes, window=window, patch=patch, input_size=input_size)
        if any(channels % count for channels, count in zip(dims, heads, strict=True)):
            raise ValueError(f"heads must divide the channels of each stage; got dims {dims} and heads {heads}.")
        self.input_size, self.patch = input_size, patch
        self.size_multiple = patch * 2 ** (len(dims) - 1)
        self.patch_embed = PatchEmbed(dims[0], patch)
        stages = []
        for i, (channels, depth, count) in enumerate(zip(dims, depths, heads, strict=True)):
            blocks = [Block(channels, count, window, window // 2 if j % 2 else 0) for j in range(depth)]
            last = i + 1 == len(dims)
            stages.append(Stage(blocks, nn.Identity() if last else PatchMerging(channels, dims[i + 1])))
        self.hold_stages(stages)
        self.norm = nn.LayerNorm(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits: (B, 3, H, W) -> (B, num_classes)."""
        self.check_input(x)
        x = self.patch_embed(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(self.norm(x).mean((1, 2)))

    def blocks(self) -> dict[str, tuple[nn.Module, Mixer]]:
        return {name: (block, block.attn) for name, block in self.named_blocks()}

    def stage_grid(self, stage: int, rows: int, cols: int) -> tuple[int, int]:
        step = self.patch * 2**stage
        return rows // step, cols // step

    def as_map(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.permute(0, 3, 1, 2)
