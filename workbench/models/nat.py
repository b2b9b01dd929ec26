"""NAT and DiNAT: hierarchical image classifiers whose positions attend to the neighbourhood around them.

Papers: Neighborhood Attention Transformer, arXiv 2204.07143 (CVPR 2023); Dilated Neighborhood Attention Transformer,
arXiv 2209.15001.
Source: written from the papers' formulas and the published names and shapes of their tensors; no upstream code was
used. Upstream code and weights are under the MIT licence; weights are loaded from a user's file.
Licence of this file: Apache-2.0.

nat_mini, nat_tiny, dinat_mini and dinat_tiny have the published configurations. DiNAT is NAT with a dilation in every
second block, which adds no parameter: the two have the same tensors, a file does not tell which of them it was trained
as, and the name that it is loaded by decides. nat_nano and dinat_nano are our own small variants for 64 x 64 images;
they have no counterpart upstream.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from kernels.attention import Pattern, neighborhood

from .attention import PADDINGS, Padding, SelfAttention
from .base import Mixer
from .checks import check_choice, check_stages, check_whole
from .hierarchy import Hierarchy
from .parts import Block, Mlp
from .registry import register


class NeighborhoodAttention(SelfAttention):
    """Softmax attention over the kernel x kernel nearest keys, with a learned bias for every offset and head.

    logit[p, q] = d ** -0.5 query[p] . key[q] + rpb[q - p], q - p in steps of the dilation, over the keys q in the
    window of p, which is moved back inside at the border: every query reads kernel ** 2 keys. The window is defined on
    maps of at least kernel x dilation positions a side; padding="keys" fills smaller ones up to that size.

    Args:
        channels: channels of x, (B, H, W, channels).
        heads: attention heads; d = channels / heads.
        kernel: keys per axis.
        dilation: positions from one key to the next.
        padding: "none" | "keys", see `SelfAttention`.

    Source: NAT (arXiv 2204.07143), equations 2 to 4; DiNAT (arXiv 2209.15001), equations 3 to 5.
    """

    relative = "key-query"

    def __init__(self, channels: int, heads: int, kernel: int, dilation: int, padding: Padding = "none") -> None:
        super().__init__(channels, heads, padding)
        self.kernel, self.dilation = kernel, dilation
        self.rpb = nn.Parameter(torch.zeros(heads, 2 * kernel - 1, 2 * kernel - 1))

    def pattern(self, rows: int, cols: int) -> Pattern:
        return neighborhood(self.kernel, dilation=self.dilation)

    def padded(self, grid: tuple[int, int]) -> tuple[int, int]:
        if self.padding == "none":
            return grid
        least = self.kernel * self.dilation
        return max(grid[0], least), max(grid[1], least)

    def bias(self, pattern: Pattern) -> torch.Tensor:
        return self.rpb


class Tokeniser(nn.Module):
    """3 x 3 convolutions of stride 2, one for every halving: (B, 3, H, W) -> (B, H / patch, W / patch, C)."""

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        halvings = patch.bit_length() - 1
        widths = [3, *(channels >> n for n in reversed(range(halvings)))]
        self.proj = nn.Sequential(*(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(widths)))
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Downsample(nn.Module):
    """A 3 x 3 convolution of stride 2, normalised: (B, H, W, C) -> (B, H / 2, W / 2, following)."""

    def __init__(self, channels: int, following: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(channels, following, 3, 2, 1, bias=False)
        self.norm = nn.LayerNorm(following)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


MINI = {"dims": (64, 128, 256, 512), "depths": (3, 4, 6, 5), "heads": (2, 4, 8, 16)}
TINY = MINI | {"depths": (3, 4, 18, 5)}
NANO = {"dims": (48, 96), "depths": (2, 2), "heads": (3, 6), "patch": 2, "num_classes": 10, "input_size": 64}


@register("nat_mini", **MINI)
@register("nat_tiny", **TINY)
@register("nat_nano", **NANO)
@register("dinat_mini", **MINI, dilations=(8, 4, 2, 1))
@register("dinat_tiny", **TINY, dilations=(8, 4, 2, 1))
@register("dinat_nano", **NANO, dilations=(4, 2))
class NAT(Hierarchy):
    """A NAT or DiNAT classifier: convolutions to tokens, stages of neighbourhood attention, a linear head.

    Sides are multiples of the last stage's step, so that every position covers equally many pixels. A grid must have
    kernel x dilation positions a side, which is the published 224 pixels for mini and tiny; with padding="keys" tokens
    of padding below and on the right, keys like any other, make it that large (the released models' rule).

    Args:
        dims: channels of each stage.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        dilations: positions between keys in every second block of each stage (DiNAT); the others have 1. None: 1 in all
            blocks (NAT).
        num_classes: outputs of the head.
        kernel: keys per axis of a query.
        ratio: width of a block's MLP, in channels of the block.
        patch: pixels per side of a token, a power of two.
        input_size: side in pixels of the images that it was designed for.
        padding: "none" | "keys".

    Raises:
        ValueError: a setting is out of range.

    Source: NAT (arXiv 2204.07143), section 3.3; DiNAT (arXiv 2209.15001), section 3.4.
    """

    family = "nat"
    name = "nat"

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        dilations: Sequence[int] | None = None,
        num_classes: int = 1000,
        kernel: int = 7,
        ratio: int = 3,
        patch: int = 4,
        input_size: int = 224,
        padding: Padding = "none",
    ) -> None:
        check_whole(kernel=kernel, ratio=ratio, patch=patch)
        check_choice("padding", padding, PADDINGS)
        check_stages(dims=dims, **({} if dilations is None else {"dilations": dilations}))
        _check_patch(patch, dims[0])

        def attention(channels: int, heads: int, stage: int, index: int) -> Mixer:
            dilation = dilations[stage] if dilations is not None and index % 2 else 1
            return NeighborhoodAttention(channels, heads, kernel, dilation, padding)

        sizes = {"num_classes": num_classes, "patch": patch, "input_size": input_size}
        super().__init__(attention, dims=dims, depths=depths, heads=heads, **sizes)
        self._take_the_published_parts(dims, ratio)
        if padding == "none":
            self.least_size = self._least_size()

    def _take_the_published_parts(self, dims: Sequence[int], ratio: int) -> None:
        """Convolutions where Swin has patches, and narrower MLPs."""
        self.add_module("patch_embed", Tokeniser(dims[0], self.patch))
        for stage, (channels, following) in zip(self.stages, pairwise(dims), strict=False):
            stage.downsample = Downsample(channels, following)
        for _, block in self.named_blocks():
            assert isinstance(block, Block)
            block.mlp = Mlp(block.norm1.normalized_shape[0], ratio=ratio)

    def _least_size(self) -> int:
        """The least side in pixels that gives every block kernel x dilation positions."""
        least = 1
        for i, stage in enumerate(self.stages):
            mixers = [module for module in stage.modules() if isinstance(module, NeighborhoodAttention)]
            least = max(least, *(mixer.kernel * mixer.dilation * self.patch * 2**i for mixer in mixers))
        return -(-least // self.size_multiple) * self.size_multiple


def _check_patch(patch: int, channels: int) -> None:
    if patch < 2 or patch & (patch - 1) or channels % (patch // 2):
        raise ValueError(
            f"patch must be a power of two, at least 2, whose half divides the {channels} channels of the first stage "
            f"(every halving is a convolution that doubles the channels); got {patch}."
        )
