"""Axial attention: a query reads its own column in one block and its own row in the next.

Architecture of our own; it shows the pattern of Axial Attention in Multidimensional Transformers, arXiv 1912.12180, and
of Axial-DeepLab, arXiv 2003.07853 (ECCV 2020), in a hierarchy of tokens like Swin's; no published layout. Whole lines
have no table of position bias that would fit maps of all sizes, so positions come from a convolution before each stage.
Licence of this file: Apache-2.0.
"""

from collections.abc import Sequence

from kernels.attention import axial

from .base import Mixer
from .fixed import FixedAttention
from .positions import PositionedHierarchy
from .registry import register


@register("axial_nano", dims=(48, 96), depths=(2, 2), heads=(3, 6), num_classes=10, patch=2, input_size=64)
class Axial(PositionedHierarchy):
    """A classifier of axial attention: patch embedding, stages with patch merging between them, a linear head.

    The blocks of a stage read their column, their row, their column, ..., so two of them reach the whole map.

    Args:
        dims: channels of each stage.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        num_classes: outputs of the head.
        patch: pixels per side of a patch.
        input_size: side in pixels of the images that it was designed for.

    Raises:
        ValueError: a setting is out of range.
    """

    family = "axial"
    name = "axial"

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        num_classes: int = 1000,
        patch: int = 4,
        input_size: int = 224,
    ) -> None:
        def attention(channels: int, heads: int, stage: int, index: int) -> Mixer:
            return FixedAttention(channels, heads, axial(index % 2))

        sizes = {"num_classes": num_classes, "patch": patch, "input_size": input_size}
        super().__init__(attention, dims=dims, depths=depths, heads=heads, **sizes)
