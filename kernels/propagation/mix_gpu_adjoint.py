"""The backward half of the fused GSPN mixer in Triton: the adjoint scan, and every gradient in the same walk.

With dh = weight u dy, a walk from the last line to the first makes E[t] = dh[t] + what line t + 1 sent back, and at
once, from values that it holds anyway, lam E + weight skip dy for dv, v E for dlam, weight dy h for du, weight dy v for
dskip, dy (u h + skip v) for dweight, and E h[t-1, n+j-1] for the gates, which goes through the rule to the logits. h is
read from the float32 scratch that the program has just written. Shapes are those of mix_gpu_lines.py; what channels
share is summed over the program's channels.
"""

import triton
import triton.language as tl

from .mix_gpu_lines import (
    ABSENT,
    SHARED,
    apart,
    beside,
    emit,
    fetch,
    line_of,
    only_if,
    ordered,
    own_of,
    pick,
    pick_three,
    place_row,
    place_tile,
)
from .normalise_gpu import inverse_of, logit_gradients, weigh

_TANH: tl.constexpr = tl.constexpr(3)


@triton.jit
def _early(
    pointers, at, inside, own, here, gated, LOGITS: tl.constexpr, U: tl.constexpr
):  # fmt: skip
    """What the adjoint scan needs: dy, the logits, and u, or any value where it is absent."""
    dy = fetch(pointers[7], own, here)
    l0, l1, l2 = pick_three(pointers[1], pointers[2], pointers[3], at, inside, own, here, gated, LOGITS)
    u = dy
    if U != ABSENT:
        u = pick(pointers[5], at, inside, own, here, U)
    return dy, l0, l1, l2, u


@triton.jit
def _late(pointers, at, inside, own, here, LAM: tl.constexpr, SKIP: tl.constexpr):
    """What only the gradients need: v, lam and skip, or any value where they are absent."""
    x = fetch(pointers[0], own, here)
    lam, skip = x, x
    if LAM != ABSENT:
        lam = pick(pointers[4], at, inside, own, here, LAM)
    if SKIP != ABSENT:
        skip = pick(pointers[6], at, inside, own, here, SKIP)
    return x, lam, skip


@triton.jit
def _weighed(l0, l1, l2, first, last, RULE: tl.constexpr):
    """Weights, their sum, 1 / S, and the gates."""
    s0, s1, s2, total = weigh(l0, l1, l2, first, last, RULE)
    inverse = inverse_of(total, RULE)
    if RULE < _TANH:
        return (s0, s1, s2, total, inverse), s0 * inverse, s1 * inverse, s2 * inverse
    else:
        return (s0, s1, s2, total, inverse), s0, s1, s2


@triton.jit
def _put(pointer, value, at, inside, own, here, KIND: tl.constexpr):
    """Store a gradient, summed over the program's channels if they share it."""
    if KIND == SHARED:
        tl.store(pointer + at, tl.sum(value, 0)[None].to(pointer.dtype.element_ty), mask=inside)
    else:
        tl.store(pointer + own, value.to(pointer.dtype.element_ty), mask=here)


@triton.jit
def _gradients(
    e, d0, d1, d2, weights, x, dy, h, lam, u, skip, outputs, w, at, inside, own, here, first, last, added, finished,
    LOGITS: tl.constexpr, LAM: tl.constexpr, U: tl.constexpr, SKIP: tl.constexpr, RULE: tl.constexpr,
    NEEDS: tl.constexpr, FINISH: tl.constexpr,
):  # fmt: skip
    """Store the gradients of a line or tile, given E and the gates' gradients; returns the terms of dweight."""
    sums, dv, dl0, dl1, dl2, dlam, du, dskip = outputs
    terms = h
    if U != ABSENT:
        terms *= u
    if NEEDS & 1:
        value = fetch(sums, own, only_if(added, here))
        value += e if LAM == ABSENT else e * lam
        if SKIP != ABSENT:
            value += w * dy * skip
        emit(value, sums, dv, own, here, finished, FINISH)
    if NEEDS & 2:
        if LOGITS == SHARED:
            d0, d1, d2 = tl.sum(d0, 0)[None], tl.sum(d1, 0)[None], tl.sum(d2, 0)[None]
        s0, s1, s2, total, inverse = weights
        d0, d1, d2 = logit_gradients(d0, d1, d2, s0, s1, s2, total, inverse, first, last, RULE)
        _put(dl0, d0, at, inside, own, here, LOGITS)
        _put(dl1, d1, at, inside, own, here, LOGITS)
        _put(dl2, d2, at, inside, own, here, LOGITS)
    if NEEDS & 4:
        _put(dlam, x * e, at, inside, own, here, LAM)
    if NEEDS & 8:
        _put(du, w * dy * h, at, inside, own, here, U)
    if NEEDS & 16:
        _put(dskip, w * dy * x, at, inside, own, here, SKIP)
    if SKIP != ABSENT:
        terms += x * skip
    return dy * terms


@triton.jit
def _step(value, sent, ends, starts, before, g0, g1, g2, n, cross, CB: tl.constexpr, BLOCK: tl.constexpr):
    """E of a line with dh `value`, what it sends to the line before it, and the gradients of its gates."""
    e = tl.where(ends, value, value + sent)
    after = tl.where((n < cross - 1)[None, :], beside(g0 * e, n, 1, CB, BLOCK), 0.0)
    sent = g1 * e + after + tl.where((n > 0)[None, :], beside(g2 * e, n, -1, CB, BLOCK), 0.0)
    read = tl.where(starts, 0.0, e)
    # Where there is no neighbour the rule's gradient does not count it.
    d0, d2 = read * beside(before, n, -1, CB, BLOCK), read * beside(before, n, 1, CB, BLOCK)
    return e, sent, d0, read * before, d2


@triton.jit
def adjoint_rows(
    pointers, outputs, scratch, w, added, finished, count, left, lines, cross, chunk, begin, end, reverse,
    LOGITS: tl.constexpr, LAM: tl.constexpr, U: tl.constexpr, SKIP: tl.constexpr, RULE: tl.constexpr,
    NEEDS: tl.constexpr, FINISH: tl.constexpr, CB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Walk image rows back, the next one requested before the current one is finished, every row of h read once.

    Returns this program's part of dweight.
    """
    n = tl.arange(0, BLOCK)
    first, last = (n == 0)[None, :], (n == cross - 1)[None, :]
    sent, total = tl.zeros((CB, BLOCK), tl.float32), tl.zeros((CB, BLOCK), tl.float32)
    at, inside = place_row(end - 1, begin, end, lines, cross, reverse, n)
    own, here = own_of(at, inside, count, left, CB)
    h = fetch(scratch, own, here)
    dy, l0, l1, l2, u = _early(pointers, at, inside, own, here, (end - 1) % chunk != 0, LOGITS, U)
    x, lam, skip = _late(pointers, at, inside, own, here, LAM, SKIP)
    for i in range(0, end - begin):
        t = end - 1 - i
        at, inside = place_row(t, begin, end, lines, cross, reverse, n)
        own, here = own_of(at, inside, count, left, CB)
        next_at, next_inside = place_row(t - 1, begin, end, lines, cross, reverse, n)
        next_own, next_here = own_of(next_at, next_inside, count, left, CB)
        before = fetch(scratch, next_own, next_here)
        next_dy, next0, next1, next2, next_u = _early(
            pointers, next_at, next_inside, next_own, next_here, (t - 1) % chunk != 0, LOGITS, U
        )
        next_x, next_lam, next_skip = _late(pointers, next_at, next_inside, next_own, next_here, LAM, SKIP)
        weights, g0, g1, g2 = _weighed(l0, l1, l2, first, last, RULE)
        value = w * dy if U == ABSENT else w * dy * u
        e, sent, d0, d1, d2 = _step(
            value, sent, (t + 1) % chunk == 0, t % chunk == 0, before, g0, g1, g2, n, cross, CB, BLOCK
        )
        total += _gradients(
            e, d0, d1, d2, weights, x, dy, h, lam, u, skip, outputs, w, at, inside, own, here, first, last, added,
            finished, LOGITS, LAM, U, SKIP, RULE, NEEDS, FINISH,
        )  # fmt: skip
        h, x, dy, u = before, next_x, next_dy, next_u
        l0, l1, l2, lam, skip = next0, next1, next2, next_lam, next_skip
    return tl.sum(total)


@triton.jit
def _column_step(
    J: tl.constexpr, t, sent, values, before, g0, g1, g2, n, cross, chunk, reverse, CB: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """`_step` of line t + J of a tile."""
    a, b, c = line_of(J, g0, reverse), line_of(J, g1, reverse), line_of(J, g2, reverse)
    ends, starts = (t + J + 1) % chunk == 0, (t + J) % chunk == 0
    return _step(line_of(J, values, reverse), sent, ends, starts, before, a, b, c, n, cross, CB, BLOCK)


@triton.jit
def adjoint_columns(
    pointers, outputs, scratch, w, added, finished, count, left, lines, cross, chunk, begin, end, reverse,
    LOGITS: tl.constexpr, LAM: tl.constexpr, U: tl.constexpr, SKIP: tl.constexpr, RULE: tl.constexpr,
    NEEDS: tl.constexpr, FINISH: tl.constexpr, CB: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Walk image columns back, last tile first, as `adjoint_rows`."""
    GATES: tl.constexpr = 1 if LOGITS == SHARED else CB
    n = tl.arange(0, BLOCK)
    first, last = (n == 0)[None, :, None], (n == cross - 1)[None, :, None]
    sent, total = tl.zeros((CB, BLOCK), tl.float32), tl.zeros((CB, BLOCK), tl.float32)
    tiles = tl.cdiv(end - begin, 4)
    at, inside = place_tile(begin + (tiles - 1) * 4, begin, end, lines, cross, reverse, n, ALIGNED)
    own, here = own_of(at, inside, count, left, CB)
    h = fetch(scratch, own, here)
    for i in range(0, tiles):
        t = begin + (tiles - 1 - i) * 4
        at, inside = place_tile(t, begin, end, lines, cross, reverse, n, ALIGNED)
        own, here = own_of(at, inside, count, left, CB)
        before_at, before_inside = place_tile(t - 4, begin, end, lines, cross, reverse, n, ALIGNED)
        before_own, before_here = own_of(before_at, before_inside, count, left, CB)
        earlier = fetch(scratch, before_own, before_here)
        dy, l0, l1, l2, u = _early(pointers, at, inside, own, here, chunk > 1, LOGITS, U)
        weights, a0, a1, a2 = _weighed(l0, l1, l2, first, last, RULE)
        value = w * dy if U == ABSENT else w * dy * u
        values, hs = apart(value, CB, BLOCK), apart(h, CB, BLOCK)
        g0, g1, g2 = apart(a0, GATES, BLOCK), apart(a1, GATES, BLOCK), apart(a2, GATES, BLOCK)
        e3, sent, p3, q3, r3 = _column_step(
            3, t, sent, values, line_of(2, hs, reverse), g0, g1, g2, n, cross, chunk, reverse, CB, BLOCK
        )
        e2, sent, p2, q2, r2 = _column_step(
            2, t, sent, values, line_of(1, hs, reverse), g0, g1, g2, n, cross, chunk, reverse, CB, BLOCK
        )
        e1, sent, p1, q1, r1 = _column_step(
            1, t, sent, values, line_of(0, hs, reverse), g0, g1, g2, n, cross, chunk, reverse, CB, BLOCK
        )
        before = line_of(3, apart(earlier, CB, BLOCK), reverse)
        e0, sent, p0, q0, r0 = _column_step(0, t, sent, values, before, g0, g1, g2, n, cross, chunk, reverse, CB, BLOCK)
        e = ordered(e0, e1, e2, e3, reverse, CB, BLOCK)
        d0 = ordered(p0, p1, p2, p3, reverse, CB, BLOCK)
        d1 = ordered(q0, q1, q2, q3, reverse, CB, BLOCK)
        d2 = ordered(r0, r1, r2, r3, reverse, CB, BLOCK)
        x, lam, skip = _late(pointers, at, inside, own, here, LAM, SKIP)
        terms = _gradients(
            e, d0, d1, d2, weights, x, dy, h, lam, u, skip, outputs, w, at, inside, own, here, first, last, added,
            finished, LOGITS, LAM, U, SKIP, RULE, NEEDS, FINISH,
        )  # fmt: skip
        total += tl.sum(terms, 2)
        h = earlier
    return tl.sum(total)
