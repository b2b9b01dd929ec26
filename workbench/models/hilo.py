"""High and low frequencies in one layer: some heads attend inside small cells, the others to the averages of cells.

Architecture of our own; it shows the patterns of Fast Vision Transformers with HiLo Attention (LITv2), arXiv 2205.13213
(NeurIPS 2022), in a hierarchy of tokens like Swin's; no published layout. Neither kind of head has a position bias, so
positions come from a convolution before each stage.
Licence of this file: Apache-2.0.
"""

from collections.abc import Sequence

import torch
from torch import nn

from kernels.attention import block

from .base import Mixer
from .checks import check_heads, check_stages, check_whole
from .positions import PositionedHierarchy
from .registry import register
from .states import AttentionState, JoinedState, PooledState, pool, to_map, to_tokens


class HiLoAttention(Mixer):
    """Softmax attention of two kinds of heads, on tokens (B, H, W, channels).

    Hi-Fi heads come first: a query reads the cell x cell positions of its own cell. A Lo-Fi head's query reads all
    cells, whose keys and values are means over their positions; as the mean of linear maps is the linear map of the
    mean, these are the projections of the averaged map. A cell at the border is the mean of the positions it has.

    Args:
        channels: channels of x.
        heads: heads of each kind, (Hi-Fi, Lo-Fi), at least one of each; d = channels / all heads.
        cell: positions per side of a cell.

    Source: HiLo (arXiv 2205.13213), section 4.
    """

    kind = "attention"

    def __init__(self, channels: int, heads: tuple[int, int], cell: int) -> None:
        super().__init__()
        self.heads, self.cell = heads, (cell, cell)
        width = channels // sum(heads)
        self.high_qkv = nn.Linear(channels, 3 * heads[0] * width)
        self.low_q = nn.Linear(channels, heads[1] * width)
        self.low_kv = nn.Linear(channels, 2 * heads[1] * width)
        self.proj = nn.Linear(channels, channels)

    def freeze(self, x: torch.Tensor) -> JoinedState:
        """Everything that the image decides, for tokens x (B, H, W, channels)."""
        high, low = self.heads
        q, k, v = self.high_qkv(x).unflatten(-1, (3, high, -1)).unbind(3)
        scale = q.shape[-1] ** -0.5
        inside = AttentionState(q, k, v, block(self.cell), None, scale, self.backend)
        q = self.low_q(x).unflatten(-1, (low, -1))
        keys, values = self.low_kv(x).unflatten(-1, (2, low, -1)).unbind(3)
        k, v = (to_tokens(pool(to_map(tokens), self.cell), low) for tokens in (keys, values))
        across = PooledState(q, k, v, self.cell, scale, self.backend, full=values)
        return JoinedState((inside, across))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(torch.cat([part.mix_tokens(part.v).flatten(3) for part in self.freeze(x).parts], -1))

    def chosen_groups(self) -> tuple[str, ...]:
        return tuple(f"head {i}" for i in range(sum(self.heads)))


@register("hilo_nano", dims=(32, 96), depths=(2, 2), heads=(2, 6), num_classes=10, patch=2, input_size=64)
class HiLo(PositionedHierarchy):
    """A classifier of HiLo attention: patch embedding, stages with patch merging between them, a linear head.

    Args:
        dims: channels of each stage.
        depths: blocks of each stage.
        heads: attention heads of each stage, Hi-Fi and Lo-Fi together.
        num_classes: outputs of the head.
        alpha: share of the heads that are Lo-Fi, rounded to whole heads.
        cell: positions per side of a cell, which Hi-Fi heads attend inside and Lo-Fi heads average.
        patch: pixels per side of a patch.
        input_size: side in pixels of the images that it was designed for.

    Raises:
        ValueError: a setting is out of range, or leaves a stage without heads of one kind.
    """

    family = "hilo"
    name = "hilo"

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        num_classes: int = 1000,
        alpha: float = 0.5,
        cell: int = 2,
        patch: int = 4,
        input_size: int = 224,
    ) -> None:
        check_whole(cell=cell)
        check_stages(dims=dims, depths=depths, heads=heads)
        check_heads(dims, heads)
        split = [_split(count, alpha) for count in heads]

        def attention(channels: int, heads: int, stage: int, index: int) -> Mixer:
            return HiLoAttention(channels, split[stage], cell)

        sizes = {"num_classes": num_classes, "patch": patch, "input_size": input_size}
        super().__init__(attention, dims=dims, depths=depths, heads=heads, **sizes)


def _split(heads: int, alpha: float) -> tuple[int, int]:
    """(Hi-Fi heads, Lo-Fi heads)."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1:
        raise ValueError(f"alpha must be a number between 0 and 1, the share of Lo-Fi heads; got {alpha!r}.")
    low = int(heads * alpha + 0.5)
    if not 0 < low < heads:
        raise ValueError(
            f"alpha must leave each stage at least one head of each kind; got {alpha} for {heads} "
            f"{'heads' if heads > 1 else 'head'}."
        )
    return heads - low, low
