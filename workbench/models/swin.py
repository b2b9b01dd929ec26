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

from .attention import PADDINGS, Padding, SelfAttention
from .base import Mixer
from .checks import check_choice, check_whole
from .hierarchy import Hierarchy
from .registry import register


class WindowAttention(SelfAttention):
    """Softmax attention inside windows, with a learned bias for every offset and head.

    logit[p, q] = d ** -0.5 query[p] . key[q] + T[p - q], over the keys q in the window of p; the window rule follows
    the map: windows of ws = min(window, H, W), shifted only if the map is larger than one window. A shifted block is
    the same windows with an offset and smaller ones at the border, so nothing is rolled or masked.

    Args:
        channels: channels of x, (B, H, W, channels).
        heads: attention heads; d = channels / heads.
        window: positions per side of a window.
        shift: positions that the windows are moved by, 0 for none.
        padding: "none": windows at the border are smaller; "keys": see `SelfAttention`.

    Source: Swin (arXiv 2103.14030), section 3.2 and equation 4.
    """

    def __init__(self, channels: int, heads: int, window: int, shift: int, padding: Padding = "none") -> None:
        super().__init__(channels, heads, padding)
        self.window, self.shift = window, shift
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))

    def pattern(self, rows: int, cols: int) -> Pattern:
        side = min(rows, cols)
        return swin(min(self.window, side), self.shift if side > self.window else 0)

    def padded(self, grid: tuple[int, int]) -> tuple[int, int]:
        if self.padding == "none":
            return grid
        window = min(self.window, *grid)
        return -(-grid[0] // window) * window, -(-grid[1] // window) * window

    def bias(self, pattern: Pattern) -> torch.Tensor:
        """The bias table as (heads, 2 ws - 1, 2 ws - 1); a smaller window meets only the offsets in its middle."""
        full, kept = 2 * self.window - 1, pattern.bias_shape(1)[1]
        first = (full - kept) // 2
        table = self.relative_position_bias_table.view(full, full, self.heads).permute(2, 0, 1)
        return table[:, first : first + kept, first : first + kept]


@register("swin_tiny", dims=(96, 192, 384, 768), depths=(2, 2, 6, 2), heads=(3, 6, 12, 24))
@register("swin_small", dims=(96, 192, 384, 768), depths=(2, 2, 18, 2), heads=(3, 6, 12, 24))
@register("swin_base", dims=(128, 256, 512, 1024), depths=(2, 2, 18, 2), heads=(4, 8, 16, 32))
@register("swin_nano", dims=(48, 96), depths=(2, 2), heads=(3, 6), window=8, patch=2, num_classes=10, input_size=64)
class Swin(Hierarchy):
    """A Swin classifier: patch embedding, stages of window attention with patch merging between them, a linear head.

    Images need not have the side that the model was designed for. Where a grid is no multiple of the window, the last
    windows are smaller, or filled up with tokens of padding that are keys like any other (padding="keys", timm's rule).

    Args:
        dims: channels of each stage.
        depths: blocks of each stage; every second block shifts its windows by half a window.
        heads: attention heads of each stage.
        num_classes: outputs of the head.
        window: positions per side of a window.
        patch: pixels per side of a patch.
        input_size: side in pixels of the images that it was designed for.
        padding: "none" | "keys".

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
        padding: Padding = "none",
    ) -> None:
        check_whole(window=window)
        check_choice("padding", padding, PADDINGS)

        def attention(channels: int, heads: int, stage: int, index: int) -> Mixer:
            return WindowAttention(channels, heads, window, window // 2 if index % 2 else 0, padding)

        sizes = {"num_classes": num_classes, "patch": patch, "input_size": input_size}
        super().__init__(attention, dims=dims, depths=depths, heads=heads, **sizes)
