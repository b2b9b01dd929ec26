"""PowerAttention on an image: the map read row by row as a sequence, and blocks a power of two back.

Architecture of our own; it shows the pattern of PowerAttention: Exponentially Scaling of Receptive Fields for Effective
Sparse Attention, arXiv 2503.03588, in a hierarchy of tokens like Swin's; no published layout. The paper's model is a
language model; as there, no query reads what comes after it, and positions enter by rotating queries and keys.
Licence of this file: Apache-2.0.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from kernels.attention import power

from .base import Mixer
from .checks import check_whole
from .fixed import FixedAttention
from .hierarchy import Hierarchy
from .registry import register
from .states import AttentionState

#: The slowest rotation takes about this many positions for one radian; maps are not longer.
SLOWEST = 100.0


class RotaryAttention(FixedAttention):
    """Softmax attention over a given pattern whose logits depend on the offset between query and key.

    logit[p, q] = d ** -0.5 (R(p) query[p]) . (R(q) key[q]), where R(row, col) turns pairs of channels: of the first
    half of them by row f_i, of the second by col f_i, with f_i = 100 ** (-i / n), i = 0 ... n - 1. R(p)^T R(q) is
    R(q - p), so only the offset counts. Channels that make no pair for both axes are left as they are.

    Source: rotary embedding (arXiv 2104.09864), equation 34, once for the rows and once for the columns.
    """

    def freeze(self, x: torch.Tensor) -> AttentionState:
        state = super().freeze(x)
        assert isinstance(state, AttentionState)
        angles = _angles(x.shape[1], x.shape[2], state.width, x)
        return replace(state, q=_rotated(state.q, angles), k=_rotated(state.k, angles))


def _angles(rows: int, cols: int, channels: int, like: torch.Tensor) -> torch.Tensor:
    """How far each pair of channels is turned at each position: (rows, cols, 2 n) with n = channels div 4."""
    n = channels // 4
    speeds = SLOWEST ** (-torch.arange(n, dtype=like.dtype, device=like.device) / max(n, 1))
    down, right = (torch.arange(size, dtype=like.dtype, device=like.device)[:, None] * speeds for size in (rows, cols))
    return torch.cat([down[:, None].expand(-1, cols, -1), right[None].expand(rows, -1, -1)], -1)


def _rotated(tokens: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Tokens (B, H, W, heads, d) with channel i of the first and i of the second half of 2 m turned by angle i."""
    m = angles.shape[-1]
    first, second, rest = tokens.split([m, m, tokens.shape[-1] - 2 * m], -1)
    cos, sin = (turn.unsqueeze(2) for turn in (angles.cos(), angles.sin()))
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], -1)


@register("power_nano", dims=(48, 96), depths=(2, 2), heads=(3, 6), num_classes=10, patch=2, input_size=64)
class Power(Hierarchy):
    """A classifier of PowerAttention: patch embedding, stages with patch merging between them, a linear head.

    With n = blocks from the query's back to the key's, a query reads the keys before it whose n is below `local` or a
    power of two, and the first `sink` blocks.

    Args:
        dims: channels of each stage.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        num_classes: outputs of the head.
        block: positions per block, counted along the rows of the map, one row after the other.
        local: how many blocks back, the own one included, are read whole.
        sink: how many blocks at the start every query reads.
        patch: pixels per side of a patch.
        input_size: side in pixels of the images that it was designed for.

    Raises:
        ValueError: a setting is out of range.
    """

    family = "power"
    name = "power"

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        num_classes: int = 1000,
        block: int = 32,
        local: int = 2,
        sink: int = 1,
        patch: int = 4,
        input_size: int = 224,
    ) -> None:
        check_whole(block=block, local=local)
        reads = power(block, local, sink)

        def attention(channels: int, heads: int, stage: int, index: int) -> Mixer:
            return RotaryAttention(channels, heads, reads)

        sizes = {"num_classes": num_classes, "patch": patch, "input_size": input_size}
        super().__init__(attention, dims=dims, depths=depths, heads=heads, **sizes)
