"""A hierarchical classifier on tokens: patches, stages of attention blocks with merging between them, a linear head.

Swin has this form, and so have the architectures of our own that show a pattern without a published layout at hand.
A family gives the attention layer of each block.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from .base import Mixer, VisionModel
from .checks import check_heads, check_stages, check_whole
from .parts import Block, PatchEmbed, PatchMerging, Stage


class Hierarchy(VisionModel):
    """Patch embedding, stages of blocks with patch merging between them, and the mean over positions classified.

    Args:
        attention: makes the attention layer of a block, given its channels, heads, and the numbers of its stage and of
            the block in it, both counted from 0.
        dims: channels of each stage.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        num_classes: outputs of the head.
        patch: pixels per side of a patch.
        input_size: side in pixels of the images that it was designed for.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        attention: Callable[[int, int, int, int], Mixer],
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        num_classes: int,
        patch: int,
        input_size: int,
    ) -> None:
        super().__init__()
        check_stages(dims=dims, depths=depths, heads=heads)
        check_heads(dims, heads)
        check_whole(num_classes=num_classes, patch=patch, input_size=input_size)
        self.input_size, self.patch = input_size, patch
        self.size_multiple = patch * 2 ** (len(dims) - 1)
        self.patch_embed = PatchEmbed(dims[0], patch)
        stages = []
        for i, (channels, depth, count) in enumerate(zip(dims, depths, heads, strict=True)):
            blocks = [Block(channels, attention(channels, count, i, j)) for j in range(depth)]
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
