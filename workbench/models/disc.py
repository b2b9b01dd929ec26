"""Attention in a disc: a query reads every key that is nearer than a radius.

Architecture of our own; it shows the pattern of CLEAR: Conv-Like Linearization Revs Pre-Trained Diffusion Transformers
Up, arXiv 2412.16112, in a hierarchy of tokens like Swin's; no published layout. CLEAR itself puts the pattern into a
diffusion model whose text tokens everything reads.
Licence of this file: Apache-2.0.
"""

from collections.abc import Sequence

from kernels.attention import disc

from .base import Mixer
from .checks import check_whole
from .fixed import FixedAttention
from .hierarchy import Hierarchy
from .registry import register


@register("disc_nano", dims=(48, 96), depths=(2, 2), heads=(3, 6), num_classes=10, patch=2, input_size=64)
class Disc(Hierarchy):
    """A classifier of attention in discs: patch embedding, stages with patch merging between them, a linear head.

    Args:
        dims: channels of each stage.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        num_classes: outputs of the head.
        radius: a query reads keys at a distance below this, in positions.
        patch: pixels per side of a patch.
        input_size: side in pixels of the images that it was designed for.

    Raises:
        ValueError: a setting is out of range.
    """

    family = "disc"
    name = "disc"

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        num_classes: int = 1000,
        radius: int = 5,
        patch: int = 4,
        input_size: int = 224,
    ) -> None:
        check_whole(radius=radius)
        reads = disc(radius)

        def attention(channels: int, heads: int, stage: int, index: int) -> Mixer:
            return FixedAttention(channels, heads, reads, "disc_bias_table")

        sizes = {"num_classes": num_classes, "patch": patch, "input_size": input_size}
        super().__init__(attention, dims=dims, depths=depths, heads=heads, **sizes)
