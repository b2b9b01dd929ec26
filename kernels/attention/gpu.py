"""Neighbourhood attention on a GPU: which Triton kernels make an output and its gradients.

`parts` puts an attention together from calls with one pattern for all heads; `Triton` answers such a call.
"""

import torch
import triton

from kernels.backends import BackendUnavailable

from . import parts
from .gpu_backward import bias_kernel, delta_kernel, key_value_kernel, query_kernel
from .gpu_bias import add_pairs
from .gpu_forward import forward_kernel
from .gpu_launch import Call
from .gpu_specs import compile_specs
from .gpu_window import window_kernel
from .parts import MOST_CHANNELS, Attention, Gradients, Maybe
from .tiles import Plan

__all__ = ["Triton", "backward", "compile_specs", "forward"]

#: Where programs treat many tiles, to sum the gradient of the bias: so many programs (four rounds of two on each of the
#: 132 multiprocessors of an H200), and at most so much memory for their sums.
PROGRAMS = 1056
PARTIAL_BYTES = 64 * 2**20


def forward(
    settings: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Maybe, extra_k: Maybe, extra_v: Maybe
) -> tuple[torch.Tensor, tuple[Maybe, ...]]:
    """Output (B, H, W, heads, d), and what `backward` needs.

    Raises:
        BackendUnavailable: the heads have too many channels.
    """
    if q.shape[-1] > MOST_CHANNELS:
        raise BackendUnavailable(
            f"backend='triton' takes at most {MOST_CHANNELS} channels a head; got {q.shape[-1]}: "
            "use backend='reference'."
        )
    return parts.forward(Triton(), settings, q, k, v, bias, extra_k, extra_v)


def backward(
    settings: Attention, needs: tuple[bool, ...], grad: torch.Tensor, saved: tuple[Maybe, ...]
) -> tuple[Maybe, ...]:
    """Gradients of q, k, v, the bias and the extra keys and values; None for those not needed."""
    return parts.backward(Triton(), settings, needs, grad, saved)


class Triton:
    """The engine that `parts` calls; `parts.Engine` says what its arguments are."""

    def attend(
        self, settings: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Maybe, out: torch.Tensor,
        lse: torch.Tensor,
    ) -> None:  # fmt: skip
        """Write the output and the logsumexp."""
        call = Call(settings, q, k, v, bias, out)
        programs, tiled = call.tiled("query")
        call.launch(forward_kernel, programs, out=out, lse=lse, **tiled)

    def differentiate(
        self, settings: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Maybe, out: torch.Tensor,
        lse: torch.Tensor, grad: torch.Tensor, gradients: Gradients,
    ) -> None:  # fmt: skip
        """Write the gradients that are asked for."""
        call = Call(settings, q, k, v, bias, out)
        dq, dk, dv = gradients.q, gradients.k, gradients.v
        if dq is not None and dk is not None and dv is not None and call.arranged("query").apart:
            _windows(call, out, lse, grad, gradients)
            return
        given = {"grad": grad, "lse": lse, "delta": _delta(call, out, lse, grad)}
        if dq is not None:
            programs, tiled = call.tiled("query")
            call.launch(query_kernel, programs, dq=dq, **given, **tiled)
        if dk is not None or dv is not None:
            programs, tiled = call.tiled("key")
            wanted = {"WANT_K": dk is not None, "WANT_V": dv is not None}
            unused = grad  # stands for a gradient that is not written
            dk, dv = (unused if t is None else t for t in (dk, dv))
            call.launch(key_value_kernel, programs, dk=dk, dv=dv, **wanted, **given, **tiled)
        if gradients.bias is not None:
            _bias(call, given, gradients.bias)


def _delta(call: Call, out: torch.Tensor, lse: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """(heads, B, H, W): the sum over channels of out times grad."""
    delta, block = torch.empty_like(lse), 64
    tokens, constants = lse[0].numel(), call.arranged("query").constants
    sizes = {"tokens": tokens, "D": constants["D"], "BLOCK_D": constants["BLOCK_D"], "BLOCK_Q": block}
    call.launch(delta_kernel, triton.cdiv(tokens, block), out=out, grad=grad, delta=delta, **sizes)
    return delta


def _windows(call: Call, out: torch.Tensor, lse: torch.Tensor, grad: torch.Tensor, gradients: Gradients) -> None:
    """All gradients at once, of a pattern whose windows share no keys."""
    items, tiled = call.tiled("query")
    wanted = gradients.bias is not None
    pairs = tiled["QUERIES"] * tiled["KEYS"]
    share = triton.cdiv(items, _splits(items, call.heads, call.heads * pairs))
    splits = triton.cdiv(items, share)
    partial = lse.new_empty(splits, call.heads, tiled["QUERIES"], tiled["KEYS"]) if wanted else lse
    written = {"dq": gradients.q, "dk": gradients.k, "dv": gradients.v, "partial": partial}
    given = {"grad": grad, "lse": lse, "out": out, "share": share, "WANT_BIAS": wanted}
    call.launch(window_kernel, splits, **written, **given, **tiled)
    if gradients.bias is not None:
        total = gradients.bias.new_zeros(gradients.bias.shape, dtype=torch.float32)
        arranged = call.arranged("query")
        offset = arranged.groups[0][0].offset, arranged.groups[1][0].offset
        add_pairs(total, partial.sum(0)[None], _slots(arranged.plan), [offset])
        gradients.bias.copy_(total)


def _bias(call: Call, given: dict[str, torch.Tensor], dbias: torch.Tensor) -> None:
    """The gradient of the bias, from as many groups of tiles at a time as there is memory for."""
    arranged, (_, tiled) = call.arranged("query"), call.tiled("query")
    groups = [(row, col) for row in arranged.groups[0] for col in arranged.groups[1]]
    largest = call.batch * max(row.tiles * col.tiles for row, col in groups)
    chunks = triton.cdiv(tiled["QUERIES"], tiled["BLOCK_Q"]) * triton.cdiv(tiled["KEYS"], tiled["BLOCK_K"])
    slots = tiled["QUERIES"] * tiled["KEYS"]
    splits = _splits(largest, call.heads * chunks * len(groups), call.heads * len(groups) * slots)
    at_once = max(1, PARTIAL_BYTES // (4 * splits * call.heads * slots))
    total = dbias.new_zeros(dbias.shape, dtype=torch.float32)
    for n in range(0, len(groups), at_once):
        own = groups[n : n + at_once]
        partial = total.new_empty(len(own), splits, call.heads, tiled["QUERIES"], tiled["KEYS"])
        more = tiled | {"groups": tiled["groups"][n : n + at_once], "partial": partial, "splits": splits}
        call.launch(bias_kernel, len(own) * splits * chunks, **given, **more)
        add_pairs(total, partial.sum(1), _slots(arranged.plan), [(row.offset, col.offset) for row, col in own])
    dbias.copy_(total)


def _slots(plan: Plan) -> tuple[int, int, int, int]:
    """Rows and columns of a tile's queries, then of its keys."""
    return plan.rows.queries, plan.cols.queries, plan.rows.keys, plan.cols.keys


def _splits(items: int, programs: int, slots: int) -> int:
    """Into how many parts to split a sum over items, if every part takes so many programs and sums."""
    return max(1, min(items, triton.cdiv(PROGRAMS, programs), PARTIAL_BYTES // (4 * slots)))
