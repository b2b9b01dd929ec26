"""MaxViT: an image classifier whose blocks convolve, attend inside windows, and attend over a grid spread on the map.

Paper: MaxViT: Multi-Axis Vision Transformer, arXiv 2204.01697 (ECCV 2022).
Source: written from the paper's formulas, the published names and shapes of its tensors, and what the documentation of
timm and torchvision states about their versions; no upstream code was used.
Upstream code and weights: Apache-2.0 (the official TensorFlow weights and timm's conversion of them), BSD-3-Clause
(torchvision); weights are loaded from a user's file.
Licence of this file: Apache-2.0.

maxvit_tiny has the published configuration with windows of 7, in the two versions that `weights_family` tells apart:

| | "tf" (official, as converted by timm) | "torchvision" |
|---|---|---|
| padding of strided convolutions | below and on the right ("same" in TensorFlow) | on all sides |
| shortcut past a strided block | mean of 2 x 2, projected where the channels change | mean of 3 x 3, always projected |
| GELU | by tanh | exact |
| scale of the logits | (channels of a head) ** -0.5 | (channels of all heads) ** -0.5 |
| first convolution, last linear map | with bias | without |

With random weights, the logits of both were once compared with those of timm 1.0.31 and torchvision 0.28.0, run as they
are installed: in float64 they differ by less than 1e-14.

maxvit_nano is our own small variant for 64 x 64 images; it has no counterpart upstream.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import nn

from kernels.attention import Pattern, block, grid

from .attention import SelfAttention
from .base import Mixer, VisionModel
from .checks import check_choice, check_heads, check_stages, check_whole
from .parts import Block, Mlp, Stage
from .registry import register
from .states import AttentionState

WeightsFamily = Literal["tf", "torchvision"]
WEIGHTS_FAMILIES = ("tf", "torchvision")

#: Batch norms of both families add this to the variance.
BATCH_NORM_EPS = 1e-3


class WindowAttention(SelfAttention):
    """Softmax attention inside windows, with a learned bias for every offset and head.

    logit[p, q] = scale query[p] . key[q] + T[q - p], over the keys q in the window of p. Table T is (heads,
    2 window - 1, 2 window - 1).

    Args:
        channels: channels of x, (B, H, W, channels); H and W are multiples of the window.
        heads: attention heads; d = channels / heads.
        window: positions per side of a window.
        weights_family: "tf": scale = d ** -0.5; "torchvision": scale = channels ** -0.5.

    Source: MaxViT (arXiv 2204.01697), section 3.2, block attention.
    """

    relative = "key-query"

    def __init__(self, channels: int, heads: int, window: int, weights_family: WeightsFamily) -> None:
        super().__init__(channels, heads)
        self.window = window
        self.scale = (channels if weights_family == "torchvision" else channels // heads) ** -0.5
        offsets = 2 * window - 1
        self.relative_position_bias_table = nn.Parameter(torch.zeros(heads, offsets, offsets))

    def pattern(self, rows: int, cols: int) -> Pattern:
        return block(self.window)

    def bias(self, pattern: Pattern) -> torch.Tensor:
        return self.relative_position_bias_table

    def freeze(self, x: torch.Tensor) -> AttentionState:
        """Everything that the image decides, for tokens x (B, H, W, channels)."""
        state = super().freeze(x)
        assert isinstance(state, AttentionState)
        return replace(state, scale=self.scale)


class GridAttention(WindowAttention):
    """The same over a grid of window x window keys spread over the map: equal to p modulo H / window and W / window.

    The bias table is read at the distance in steps of the grid.

    Source: MaxViT (arXiv 2204.01697), section 3.2, grid attention.
    """

    def pattern(self, rows: int, cols: int) -> Pattern:
        return grid(self.window, (rows, cols))


class Strided(nn.Conv2d):
    """A 3 x 3 convolution whose padding lies below and on the right, as TensorFlow's "same" does on even sides."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def convolution(
    channels: int, following: int, stride: int, weights_family: WeightsFamily, **settings: Any
) -> nn.Conv2d:
    """A 3 x 3 convolution with the padding of a family: (B, C, H, W) -> (B, following, H / stride, W / stride)."""
    if stride > 1 and weights_family == "tf":
        return Strided(channels, following, 3, stride, **settings)
    return nn.Conv2d(channels, following, 3, stride, padding=1, **settings)


class SqueezeExcitation(nn.Module):
    """x times a gate for every channel: sigmoid(fc2(silu(fc1(mean of x over positions))))."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.fc2(F.silu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class MBConv(nn.Module):
    """An inverted bottleneck: 1 x 1 to four times the channels, depthwise 3 x 3, squeeze and excitation, 1 x 1 back.

    Args:
        channels: channels of x, (B, channels, H, W).
        following: channels of the output, (B, following, H / stride, W / stride).
        stride: 1, or 2 with a shortcut that means and projects.
        weights_family: "tf" | "torchvision".

    Source: MaxViT (arXiv 2204.01697), section 3.3 and appendix; MobileNetV2 (arXiv 1801.04381).
    """

    def __init__(self, channels: int, following: int, stride: int, weights_family: WeightsFamily) -> None:
        super().__init__()
        inner = 4 * following
        self.gelu = gelu_of(weights_family)
        self.pre_norm = nn.BatchNorm2d(channels, BATCH_NORM_EPS)
        self.conv1_1x1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner, BATCH_NORM_EPS)
        self.conv2_kxk = convolution(inner, inner, stride, weights_family, groups=inner, bias=False)
        self.norm2 = nn.BatchNorm2d(inner, BATCH_NORM_EPS)
        self.se = SqueezeExcitation(inner, max(1, following // 4))
        self.conv3_1x1 = nn.Conv2d(inner, following, 1)
        self.shortcut = shortcut(channels, following, weights_family) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.gelu(self.norm1(self.conv1_1x1(self.pre_norm(x))))
        inner = self.se(self.gelu(self.norm2(self.conv2_kxk(inner))))
        return self.shortcut(x) + self.conv3_1x1(inner)


def shortcut(channels: int, following: int, weights_family: WeightsFamily) -> nn.Sequential:
    """The way past a strided block: (B, channels, H, W) -> (B, following, H / 2, W / 2)."""
    if weights_family == "torchvision":
        pool, projected = nn.AvgPool2d(3, 2, padding=1), True
    else:
        pool, projected = nn.AvgPool2d(2), channels != following
    expand = nn.Conv2d(channels, following, 1) if projected else nn.Identity()
    return nn.Sequential(OrderedDict(pool=pool, expand=expand))


def gelu_of(weights_family: WeightsFamily) -> Callable[[torch.Tensor], torch.Tensor]:
    """The GELU of a family: by tanh or exact."""
    return partial(F.gelu, approximate="tanh" if weights_family == "tf" else "none")


class FamilyMlp(Mlp):
    """`Mlp` with the GELU of a family."""

    def __init__(self, channels: int, weights_family: WeightsFamily) -> None:
        super().__init__(channels)
        self.gelu = gelu_of(weights_family)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.gelu(self.fc1(x)))


class MaxViTBlock(nn.Module):
    """MBConv, attention inside windows, attention over the grid: (B, C, H, W) -> (B, following, H', W')."""

    def __init__(
        self, channels: int, following: int, stride: int, heads: int, window: int, weights_family: WeightsFamily
    ) -> None:
        super().__init__()
        self.conv = MBConv(channels, following, stride, weights_family)
        self.attn_block = Block(following, WindowAttention(following, heads, window, weights_family))
        self.attn_grid = Block(following, GridAttention(following, heads, window, weights_family))
        for part in (self.attn_block, self.attn_grid):
            part.mlp = FamilyMlp(following, weights_family)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.conv(x).permute(0, 2, 3, 1)
        return self.attn_grid(self.attn_block(tokens)).permute(0, 3, 1, 2)


class Stem(nn.Module):
    """Two 3 x 3 convolutions, a norm and a GELU between them: (B, 3, H, W) -> (B, channels, H / stride, W / stride)."""

    def __init__(self, channels: int, stride: int, weights_family: WeightsFamily) -> None:
        super().__init__()
        self.gelu = gelu_of(weights_family)
        self.conv1 = convolution(3, channels, stride, weights_family, bias=weights_family == "tf")
        self.norm1 = nn.BatchNorm2d(channels, BATCH_NORM_EPS)
        self.conv2 = convolution(channels, channels, 1, weights_family)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.gelu(self.norm1(self.conv1(x))))


class Head(nn.Module):
    """The mean over positions, a norm, a hidden layer with tanh, a linear map: (B, C, H, W) -> (B, num_classes)."""

    def __init__(self, channels: int, num_classes: int, weights_family: WeightsFamily) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.pre_logits = nn.Linear(channels, channels)
        self.fc = nn.Linear(channels, num_classes, bias=weights_family == "tf")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pre_logits(self.norm(x.mean((2, 3)))).tanh())


@register("maxvit_tiny", dims=(64, 128, 256, 512), depths=(2, 2, 5, 2), heads=(2, 4, 8, 16))
@register(
    "maxvit_nano", dims=(48, 80), depths=(1, 1), heads=(3, 5), window=8, stem_stride=1, num_classes=10, input_size=64
)
class MaxViT(VisionModel):
    """A MaxViT classifier: a stem, stages of blocks whose first halves the grid, a head with a hidden layer.

    A block has two mixing layers, "stage1.block1.window" and "stage1.block1.grid". Every grid must be a multiple of the
    window, and so the sides of an image of stem_stride * 2 ** stages * window pixels.

    Args:
        dims: channels of each stage; the stem has those of the first.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        num_classes: outputs of the head.
        window: positions per side of a window, and keys per side of the grid.
        stem_stride: of the first convolution, 1 or 2; every stage then halves the grid.
        input_size: side in pixels of the images that it was designed for.
        weights_family: "tf" | "torchvision", see the head of this file; a weights file tells its own.

    Raises:
        ValueError: a setting is out of range.

    Source: MaxViT (arXiv 2204.01697), section 3.3 and table 1.
    """

    family = "maxvit"
    name = "maxvit"

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        num_classes: int = 1000,
        window: int = 7,
        stem_stride: int = 2,
        input_size: int = 224,
        weights_family: WeightsFamily = "tf",
    ) -> None:
        super().__init__()
        check_stages(dims=dims, depths=depths, heads=heads)
        check_heads(dims, heads)
        check_whole(num_classes=num_classes, window=window, stem_stride=stem_stride, input_size=input_size)
        check_choice("weights_family", weights_family, WEIGHTS_FAMILIES)
        if stem_stride > 2:
            raise ValueError(f"stem_stride must be 1 or 2; got {stem_stride}.")
        self.input_size, self.stem_stride = input_size, stem_stride
        self.size_multiple = stem_stride * 2 ** len(dims) * window
        self.stem = Stem(dims[0], stem_stride, weights_family)
        before = (dims[0], *dims[:-1])
        stages = []
        for given, channels, depth, count in zip(before, dims, depths, heads, strict=True):
            blocks = [
                MaxViTBlock(channels if j else given, channels, 1 if j else 2, count, window, weights_family)
                for j in range(depth)
            ]
            stages.append(Stage(blocks, nn.Identity()))
        self.hold_stages(stages)
        self.head = Head(dims[-1], num_classes, weights_family)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits: (B, 3, H, W) -> (B, num_classes)."""
        self.check_input(x)
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x)

    def blocks(self) -> dict[str, tuple[nn.Module, Mixer]]:
        found: dict[str, tuple[nn.Module, Mixer]] = {}
        for name, both in self.named_blocks():
            for part, half in (("window", both.attn_block), ("grid", both.attn_grid)):
                found[f"{name}.{part}"] = half, cast(Mixer, half.attn)
        return found

    def stage_grid(self, stage: int, rows: int, cols: int) -> tuple[int, int]:
        step = self.stem_stride * 2 ** (stage + 1)
        return rows // step, cols // step

    def as_map(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.permute(0, 3, 1, 2)
