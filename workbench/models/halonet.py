"""Halo attention: blocks of queries that read their own block and a halo of positions around it.

Architecture of our own; it shows the pattern of Scaling Local Self-Attention for Parameter Efficient Visual Backbones
(HaloNet), arXiv 2103.12731 (CVPR 2021), in a hierarchy of tokens like Swin's; no published layout. HaloNet itself is a
ResNet with such attention in place of convolutions, and its position term is of another form; ours is a bias table,
and keys outside the map do not exist.
Licence of this file: Apache-2.0.
"""

from collections.abc import Sequence
from typing import Literal

from kernels.attention import halo as halo_pattern

from .base import Mixer
from .fixed import FixedAttention
from .hierarchy import Hierarchy
from .registry import register

Border = Literal["crop", "clamp"]


@register("halonet_nano", dims=(48, 96), depths=(2, 2), heads=(3, 6), num_classes=10, patch=2, input_size=64)
class HaloNet(Hierarchy):
    """A classifier of halo attention: patch embedding, stages with patch merging between them, a linear head.

    With border="clamp" every grid must have at least block + 2 halo positions a side; images are then no smaller than
    `least_size` pixels.

    Args:
        dims: channels of each stage.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        num_classes: outputs of the head.
        block: queries per side that share their keys, or (rows, cols).
        halo: further keys on every side of a block, or (rows, cols).
        border: "crop" drops keys outside the map, "clamp" moves the window back inside.
        patch: pixels per side of a patch.
        input_size: side in pixels of the images that it was designed for.

    Raises:
        ValueError: a setting is out of range.
    """

    family = "halonet"
    name = "halonet"

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        num_classes: int = 1000,
        block: int | tuple[int, int] = 8,
        halo: int | tuple[int, int] = 3,
        border: Border = "crop",
        patch: int = 4,
        input_size: int = 224,
    ) -> None:
        reads = halo_pattern(block, halo, border)

        def attention(channels: int, heads: int, stage: int, index: int) -> Mixer:
            return FixedAttention(channels, heads, reads, "halo_bias_table")

        sizes = {"num_classes": num_classes, "patch": patch, "input_size": input_size}
        super().__init__(attention, dims=dims, depths=depths, heads=heads, **sizes)
        if border == "clamp":
            self.least_size = self.size_multiple * (max(reads.bias_shape(1)) + 1) // 2
