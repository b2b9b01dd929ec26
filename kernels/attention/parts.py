"""One attention as a few simple ones: a group of heads after the other, and extra keys merged by their logsumexp.

Both engines know how to attend with one pattern for all heads and one set of keys. Here an attention is put together
from such parts. A part's logsumexp says how much of a query's softmax the part holds, so local and extra keys are
attended apart and then weighted; backwards, every part takes the logsumexp of the whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from .pattern import WHOLE, Pattern

#: Channels of a head that Triton's kernels take: they hold whole rows of channels in registers.
MOST_CHANNELS = 128

#: What extra keys are read by: all of them, by every query.
EVERYTHING = Pattern(WHOLE, WHOLE, "extra keys")

Maybe = torch.Tensor | None


class Attention(NamedTuple):
    """What an engine needs besides the tensors: which keys a query reads, and the factor of its logits."""

    pattern: Pattern
    scale: float


@dataclass(frozen=True)
class Gradients:
    """Where a part's gradients go; None for those not needed. bias (heads, 2 kh - 1, 2 kw - 1) is written, too."""

    q: Maybe
    k: Maybe
    v: Maybe
    bias: Maybe


class Engine(Protocol):
    """What cpu.py and gpu.py implement: one pattern without head groups, keys on one grid.

    q, out, grad and gradients.q are (B, H, W, heads, d); k, v and their gradients (B, KH, KW, heads, d), where the key
    grid differs from the queries' only if the pattern reads all of it. q, k and v may be views with any strides; out,
    grad and the gradients are contiguous but for the axis of heads, which may be a slice of a longer one. lse (heads,
    B, H, W) is contiguous.
    """

    def attend(
        self, settings: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Maybe, out: torch.Tensor,
        lse: torch.Tensor,
    ) -> None: ...  # fmt: skip

    def differentiate(
        self, settings: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Maybe, out: torch.Tensor,
        lse: torch.Tensor, grad: torch.Tensor, gradients: Gradients,
    ) -> None: ...  # fmt: skip


def forward(
    engine: Engine,
    settings: Attention,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: Maybe,
    extra_k: Maybe,
    extra_v: Maybe,
) -> tuple[torch.Tensor, tuple[Maybe, ...]]:
    """Output (B, H, W, heads, d), and what `backward` needs. extra_k, extra_v: (B, S, heads, d) or None."""
    out = q.new_empty(q.shape)
    lse = q.new_empty(q.shape[3], q.shape[0], *q.shape[1:3], dtype=torch.float32)
    # Parts that are still to be weighted are kept in float32.
    local = out if extra_k is None else torch.empty_like(out, dtype=torch.float32)
    for own, pattern in _groups(settings.pattern, q.shape[3]):
        table = None if bias is None else bias[own]
        part = Attention(pattern, settings.scale)
        engine.attend(part, q[..., own, :], k[..., own, :], v[..., own, :], table, local[..., own, :], lse[own])
    if extra_k is not None and extra_v is not None:
        more, more_lse = torch.empty_like(local), torch.empty_like(lse)
        part = Attention(EVERYTHING, settings.scale)
        engine.attend(part, q, extra_k.unsqueeze(1), extra_v.unsqueeze(1), None, more, more_lse)
        total = torch.logaddexp(lse, more_lse)
        out.copy_(local * _weight(lse, total) + more * _weight(more_lse, total))
        lse = total
    return out, (q, k, v, bias, extra_k, extra_v, out, lse)


def backward(
    engine: Engine, settings: Attention, needs: tuple[bool, ...], grad: torch.Tensor, saved: tuple[Any, ...]
) -> tuple[Maybe, ...]:
    """Gradients of q, k, v, the bias and the extra keys and values; None for those not needed."""
    q, k, v, bias, extra_k, extra_v, out, lse = saved
    grad = grad.contiguous()
    found = [None if t is None or not n else _fresh(t) for t, n in zip(saved, needs, strict=False)]
    dq, dk, dv, dbias, dextra_k, dextra_v = found
    for own, pattern in _groups(settings.pattern, q.shape[3]):
        table = None if bias is None else bias[own]
        own_q, own_k, own_v = (t[..., own, :] for t in (q, k, v))
        own_dq, own_dk, own_dv = (None if t is None else t[..., own, :] for t in (dq, dk, dv))
        wanted = Gradients(own_dq, own_dk, own_dv, None if dbias is None else dbias[own])
        part = Attention(pattern, settings.scale)
        engine.differentiate(part, own_q, own_k, own_v, table, out[..., own, :], lse[own], grad[..., own, :], wanted)
    if extra_k is not None and extra_v is not None:
        more = None if dq is None else _fresh(q)
        wanted = Gradients(more, _row(dextra_k), _row(dextra_v), None)
        part = Attention(EVERYTHING, settings.scale)
        engine.differentiate(part, q, extra_k.unsqueeze(1), extra_v.unsqueeze(1), None, out, lse, grad, wanted)
        if dq is not None and more is not None:
            dq += more
    return dq, dk, dv, dbias, dextra_k, dextra_v


def _groups(pattern: Pattern, heads: int) -> Iterator[tuple[slice, Pattern]]:
    """The heads of every group and their pattern."""
    count = heads // len(pattern.groups)
    for n, group in enumerate(pattern.groups):
        yield slice(n * count, (n + 1) * count), group


def _fresh(like: torch.Tensor) -> torch.Tensor:
    """Contiguous memory for a gradient."""
    return like.new_empty(like.shape)


def _row(tensor: Maybe) -> Maybe:
    """(B, S, heads, d) as a map of one row."""
    return None if tensor is None else tensor.unsqueeze(1)


def _weight(lse: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """The share of the softmax that a part holds, (heads, B, H, W) -> (B, H, W, heads, 1)."""
    return (lse - total).exp().permute(1, 2, 3, 0).unsqueeze(-1)
