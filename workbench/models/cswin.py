"""CSWin Transformer: a hierarchical image classifier whose heads attend along vertical and horizontal stripes.

Paper: CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows, arXiv 2107.00652 (CVPR 2022).
Source: written from the paper's formulas and the published names and shapes of its tensors; no upstream code was used.
Upstream code and weights are under the MIT licence; weights are loaded from a user's file.
Licence of this file: Apache-2.0.

cswin_tiny has the published configuration. cswin_nano is our own small variant for 64 x 64 images; it has no
counterpart upstream.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from kernels.attention import Pattern, cross, full

from .attention import SelfAttention
from .base import Mixer
from .checks import check_stages
from .hierarchy import Hierarchy
from .registry import register
from .states import AttentionState


@dataclass(frozen=True)
class StripeState(AttentionState):
    """The attention of a CSWin layer frozen at an image; LePE, which the layer adds to it, is not part of it."""

    @property
    def reading(self) -> str:
        where = "on the whole map" if self.pattern.whole else "inside stripes"
        return f"{self.pattern.name}; LePE (3x3 depthwise, {where}) not included"


class Lepe(nn.Conv2d):
    """Locally-enhanced positional encoding: mixed + a depthwise 3 x 3 convolution of the values, stripe by stripe.

    The first half of the channels is convolved in vertical stripes, the second half in horizontal ones, with zeros
    around every stripe: nothing crosses from one to the next. Without a width, the map is one stripe.

    Source: CSWin (arXiv 2107.00652), equation 8.
    """

    def __init__(self, channels: int, width: int | None) -> None:
        super().__init__(channels, channels, 3, padding=1, groups=channels)
        self.width = width

    def forward(self, mixed: torch.Tensor, value: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """What the attention made and its values, both (B, H, W, C) -> (B, H, W, C)."""
        assert self.bias is not None
        if self.width is None:
            return mixed + super().forward(value.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        (down, across), weights, biases = value.chunk(2, 3), self.weight.chunk(2), self.bias.chunk(2)
        # Vertical stripes are the horizontal ones of the transposed map.
        down = convolve_stripes(down.transpose(1, 2), weights[0].transpose(2, 3), biases[0], self.width)
        across = convolve_stripes(across, weights[1], biases[1], self.width)
        return mixed + torch.cat([down.transpose(1, 2), across], 3)


def convolve_stripes(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, width: int) -> torch.Tensor:
    """A depthwise 3 x 3 convolution inside horizontal stripes of `width` rows, with zeros around each.

    tokens (B, H, W, C), weight (C, 1, 3, 3), bias (C,) -> (B, H, W, C). Rows of zeros fill up the last stripe, where
    its border is zero anyway, so that stripes can be convolved as images of a batch.
    """
    batch, rows, _, channels = tokens.shape
    count = -(-rows // width)
    if rows % width:
        tokens = F.pad(tokens, (0, 0, 0, 0, 0, count * width - rows))
    stripes = tokens.unflatten(1, (count, width)).flatten(0, 1).permute(0, 3, 1, 2)
    convolved = F.conv2d(stripes, weight, bias, padding=1, groups=channels)
    return convolved.permute(0, 2, 3, 1).unflatten(0, (batch, count)).flatten(1, 2)[:, :rows]


class StripeAttention(SelfAttention):
    """Softmax attention along stripes: half of the heads read vertical ones, half horizontal ones, plus LePE.

    out = proj(softmax(d ** -0.5 q k^T) v + LePE(v)). The operator of the layer is the softmax part, the input of
    `lepe`; what LePE adds is a convolution that no image decides.

    Args:
        channels: channels of x, (B, H, W, channels).
        heads: attention heads; d = channels / heads.
        width: lines of a stripe; None: every head reads the whole map.

    Source: CSWin (arXiv 2107.00652), sections 3.2 and 3.3.
    """

    def __init__(self, channels: int, heads: int, width: int | None) -> None:
        super().__init__(channels, heads)
        self.width = width
        self.lepe = Lepe(channels, width)

    def pattern(self, rows: int, cols: int) -> Pattern:
        return full() if self.width is None else cross(self.width)

    def freeze(self, x: torch.Tensor) -> StripeState:
        return StripeState(**vars(super().freeze(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = self.freeze(x)
        return self.proj(self.lepe(state.mix_tokens(state.v).flatten(3), state.v.flatten(3)))


class ConvEmbed(nn.Module):
    """An overlapping convolution of stride `patch`, normalised: (B, 3, H, W) -> (B, H / patch, W / patch, C)."""

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, 2 * patch - 1, patch, patch // 2)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class ConvMerging(nn.Module):
    """A 3 x 3 convolution of stride 2, normalised: (B, H, W, C) -> (B, H / 2, W / 2, following)."""

    def __init__(self, channels: int, following: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, following, 3, 2, 1)
        self.norm = nn.LayerNorm(following)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


@register("cswin_tiny", dims=(64, 128, 256, 512), depths=(1, 2, 21, 1), heads=(2, 4, 8, 16), split=(1, 2, 7, 7))
@register(
    "cswin_nano", dims=(32, 96), depths=(2, 2), heads=(2, 6), split=(2, 4), patch=2, num_classes=10, input_size=64
)
class CSWin(Hierarchy):
    """A CSWin classifier: convolutional patches, stages of stripe attention, a linear head.

    The blocks of the last stage read the whole map. Where a grid is no multiple of the stripes' width, the last stripes
    are smaller.

    Args:
        dims: channels of each stage.
        depths: blocks of each stage.
        heads: attention heads of each stage, even in all but the last.
        split: lines of a stripe in each stage, as published; the last has no stripes, whatever its entry.
        num_classes: outputs of the head.
        patch: pixels per side of a patch.
        input_size: side in pixels of the images that it was designed for.

    Raises:
        ValueError: a setting is out of range.

    Source: CSWin (arXiv 2107.00652), section 3.4 and table 1.
    """

    family = "cswin"
    name = "cswin"

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        split: Sequence[int],
        num_classes: int = 1000,
        patch: int = 4,
        input_size: int = 224,
    ) -> None:
        check_stages(dims=dims, heads=heads, split=split)
        if any(count % 2 for count in heads[:-1]):
            raise ValueError(
                "heads must be even in every stage but the last, half of them for the vertical and half for the "
                f"horizontal stripes; got {tuple(heads)}."
            )
        last = len(dims) - 1

        def attention(channels: int, heads: int, stage: int, index: int) -> Mixer:
            return StripeAttention(channels, heads, None if stage == last else split[stage])

        sizes = {"num_classes": num_classes, "patch": patch, "input_size": input_size}
        super().__init__(attention, dims=dims, depths=depths, heads=heads, **sizes)
        # Convolutions where Swin has patches.
        self.add_module("patch_embed", ConvEmbed(dims[0], patch))
        for stage, (channels, following) in zip(self.stages, pairwise(dims), strict=False):
            stage.downsample = ConvMerging(channels, following)
