"""Attention whose pattern is the same on every map, as in the families of our own architecture."""

import torch
from torch import nn

from kernels.attention import Pattern

from .attention import SelfAttention


class FixedAttention(SelfAttention):
    """Softmax attention over a given pattern, with or without a learned bias for every offset and head.

    logit[p, q] = d ** -0.5 query[p] . key[q] + T[p - q], over the keys q that the pattern lets p read.

    Args:
        channels: channels of x, (B, H, W, channels).
        heads: attention heads; d = channels / heads.
        reads: which keys a query reads.
        table: the parameter's name that holds T, (heads, 2 kh - 1, 2 kw - 1); None for no bias.
    """

    def __init__(self, channels: int, heads: int, reads: Pattern, table: str | None = None) -> None:
        super().__init__(channels, heads)
        self.reads, self.table = reads, table
        if table is not None:
            self.register_parameter(table, nn.Parameter(torch.zeros(reads.bias_shape(heads))))

    def pattern(self, rows: int, cols: int) -> Pattern:
        return self.reads

    def bias(self, pattern: Pattern) -> torch.Tensor | None:
        return None if self.table is None else getattr(self, self.table)
