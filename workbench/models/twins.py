"""Local attention and attention to a reduced map in turn: windows in one block, all pooled keys in the next.

Architecture of our own; it shows the patterns of Twins: Revisiting the Design of Spatial Attention in Vision
Transformers (Twins-SVT), arXiv 2104.13840 (NeurIPS 2021), in a hierarchy of tokens like Swin's; no published layout.
Neither block has a position bias, so positions come from a convolution before each stage.
Licence of this file: Apache-2.0.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from kernels.attention import block as block_pattern

from .base import Mixer
from .checks import check_stages
from .fixed import FixedAttention
from .positions import PositionedHierarchy
from .registry import register
from .states import PooledState


class ReducedAttention(Mixer):
    """Softmax attention of all queries to the keys of a reduced map, on tokens (B, H, W, channels).

    The map is reduced by a convolution over cells of sr x sr positions; keys and values come from its norm:

        k, v = kv(LN(conv(x))),    out[p] = proj(sum over cells c of softmax_c(d ** -0.5 q[p] . k[c]) v[c])

    Where sr does not divide the map, the last cells are filled up with zeros.

    Args:
        channels: channels of x.
        heads: attention heads; d = channels / heads.
        sr: positions per side of a cell.

    Source: Twins (arXiv 2104.13840), section 3.2, global sub-sampled attention.
    """

    kind = "attention"

    def __init__(self, channels: int, heads: int, sr: int) -> None:
        super().__init__()
        self.heads, self.cell = heads, (sr, sr)
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.sr = nn.Conv2d(channels, channels, sr, sr)
        self.norm = nn.LayerNorm(channels)
        self.proj = nn.Linear(channels, channels)

    def freeze(self, x: torch.Tensor) -> PooledState:
        """Everything that the image decides, for tokens x (B, H, W, channels)."""
        q = self.q(x).unflatten(-1, (self.heads, -1))
        k, v = self.kv(self.norm(self._reduced(x))).unflatten(-1, (2, self.heads, -1)).unbind(3)
        return PooledState(q, k, v, self.cell, q.shape[-1] ** -0.5, self.backend)

    def _reduced(self, x: torch.Tensor) -> torch.Tensor:
        """One token for every cell: (B, H, W, channels) -> (B, KH, KW, channels)."""
        down, right = (-size % side for size, side in zip(x.shape[1:3], self.cell, strict=True))
        return self.sr(F.pad(x.permute(0, 3, 1, 2), (0, right, 0, down))).permute(0, 2, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = self.freeze(x)
        return self.proj(state.mix_tokens(state.v).flatten(3))

    def chosen_groups(self) -> tuple[str, ...]:
        return tuple(f"head {i}" for i in range(self.heads))


@register(
    "twins_nano",
    dims=(48, 80),
    depths=(2, 2),
    heads=(3, 5),
    num_classes=10,
    block=8,
    sr_ratios=(4, 2),
    patch=2,
    input_size=64,
)
class Twins(PositionedHierarchy):
    """A classifier that alternates windows and a reduced map: stages with patch merging, a linear head.

    The first, third, ... block of a stage attends inside windows, the second, fourth, ... to the reduced map.

    Args:
        dims: channels of each stage.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        sr_ratios: positions per side of a cell that is reduced to one key, for each stage.
        num_classes: outputs of the head.
        block: positions per side of a window, or (rows, cols).
        patch: pixels per side of a patch.
        input_size: side in pixels of the images that it was designed for.

    Raises:
        ValueError: a setting is out of range.
    """

    family = "twins"
    name = "twins"

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        sr_ratios: Sequence[int],
        num_classes: int = 1000,
        block: int | tuple[int, int] = 7,
        patch: int = 4,
        input_size: int = 224,
    ) -> None:
        check_stages(dims=dims, sr_ratios=sr_ratios)
        reads = block_pattern(block)

        def attention(channels: int, heads: int, stage: int, index: int) -> Mixer:
            if index % 2:
                return ReducedAttention(channels, heads, sr_ratios[stage])
            return FixedAttention(channels, heads, reads)

        sizes = {"num_classes": num_classes, "patch": patch, "input_size": input_size}
        super().__init__(attention, dims=dims, depths=depths, heads=heads, **sizes)
