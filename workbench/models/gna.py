"""Strided neighbourhood attention: queries of a cell share the neighbourhood around the cell's middle.

Architecture of our own; it shows the pattern of Generalized Neighborhood Attention, arXiv 2504.16922, in a hierarchy
of tokens like Swin's; no published layout. Stride 1 is neighbourhood attention, a stride as large as the kernel is
windows that share nothing.
Licence of this file: Apache-2.0.
"""

from collections.abc import Sequence

from kernels.attention import neighborhood

from .base import Mixer
from .checks import check_whole
from .fixed import FixedAttention
from .hierarchy import Hierarchy
from .registry import register


@register("gna_nano", dims=(48, 96), depths=(2, 2), heads=(3, 6), num_classes=10, patch=2, input_size=64)
class GNA(Hierarchy):
    """A classifier of strided neighbourhood attention: patch embedding, stages with patch merging, a linear head.

    Every grid must have at least `kernel` positions a side; images are no smaller than `least_size` pixels.

    Args:
        dims: channels of each stage.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        num_classes: outputs of the head.
        kernel: keys per side of a neighbourhood.
        stride: queries per side that share their keys, from 1 to the kernel.
        patch: pixels per side of a patch.
        input_size: side in pixels of the images that it was designed for.

    Raises:
        ValueError: a setting is out of range.
    """

    family = "gna"
    name = "gna"

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        num_classes: int = 1000,
        kernel: int = 7,
        stride: int = 2,
        patch: int = 4,
        input_size: int = 224,
    ) -> None:
        check_whole(kernel=kernel, stride=stride)
        reads = neighborhood(kernel, stride)

        def attention(channels: int, heads: int, stage: int, index: int) -> Mixer:
            return FixedAttention(channels, heads, reads, "neighborhood_bias_table")

        sizes = {"num_classes": num_classes, "patch": patch, "input_size": input_size}
        super().__init__(attention, dims=dims, depths=depths, heads=heads, **sizes)
        self.least_size = self.size_multiple * kernel
