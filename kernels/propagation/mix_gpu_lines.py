"""What the fused GSPN mixer's Triton kernels do line by line: operands, gates from logits, the scan, the merge.

A program holds the lines of CB channels of one image at once, (CB, BLOCK): BLOCK positions across the scan, of which
`cross` are on the map. A vertical scan takes one image row a step. A horizontal one takes a tile of four columns,
(CB, BLOCK, 4): everything that does not depend on the line before is done on the whole tile, which is loaded with one
wide load a row where rows allow it; source, gates and nothing else are taken apart into columns for the recurrence.

A map is OWN (a plane for every channel), SHARED (one plane for all channels of an image, (1, BLOCK) in registers) or
ABSENT. Pointers come to the start of the program's planes, so that offsets fit 32 bits.
"""

import triton
import triton.language as tl

from .normalise_gpu import inverse_of, weigh
from .reference import SMALLEST_SUM

ABSENT: tl.constexpr = tl.constexpr(0)
OWN: tl.constexpr = tl.constexpr(1)
SHARED: tl.constexpr = tl.constexpr(2)

_SMALLEST: tl.constexpr = tl.constexpr(SMALLEST_SUM)
_SIGMOID: tl.constexpr = tl.constexpr(0)
_TANH: tl.constexpr = tl.constexpr(3)
#: Below minus this, 1e-7 d0 d1 d2 would overflow; raising a logit to it moves a gate by at most 2e-8.
_HIGHEST: tl.constexpr = tl.constexpr(34.0)


@triton.jit
def fetch(pointer, at, inside):
    """Values in float32, 0 where they are not inside."""
    return tl.load(pointer + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def only_if(condition, mask):
    """`mask` where the scalar condition holds; written so because the interpreter cannot combine them with &."""
    return mask & (tl.zeros(mask.shape, tl.int32) < tl.where(condition, 1, 0))


@triton.jit
def pick(pointer, at, inside, own, here, KIND: tl.constexpr):
    """Values of a map, (CB, ...) if every channel has its own, (1, ...) if they share it."""
    if KIND == SHARED:
        return fetch(pointer, at, inside)
    else:
        return fetch(pointer, own, here)


@triton.jit
def pick_three(l0, l1, l2, at, inside, own, here, gated, KIND: tl.constexpr):
    """Three logits, or zeros and no access to memory unless `gated`."""
    inside, here = only_if(gated, inside), only_if(gated, here)
    a0 = pick(l0, at, inside, own, here, KIND)
    a1 = pick(l1, at, inside, own, here, KIND)
    a2 = pick(l2, at, inside, own, here, KIND)
    return a0, a1, a2


@triton.jit
def beside(line, n, STEP: tl.constexpr, CB: tl.constexpr, BLOCK: tl.constexpr):
    """line[:, n + STEP], and at either end of the block line[:, n] itself."""
    there = tl.minimum(tl.maximum(n + STEP, 0), BLOCK - 1)
    # A flat line: gathers along an axis of a matrix go through other layouts, with twice the registers.
    at = tl.arange(0, CB)[:, None] * BLOCK + there[None, :]
    return tl.reshape(tl.gather(tl.reshape(line, (CB * BLOCK,)), tl.reshape(at, (CB * BLOCK,)), 0), (CB, BLOCK))


@triton.jit
def advance(previous, source, g0, g1, g2, n, CB: tl.constexpr, BLOCK: tl.constexpr):
    """One step of the recurrence for whole lines; where there is no neighbour its gate is exactly 0."""
    before, after = beside(previous, n, -1, CB, BLOCK), beside(previous, n, 1, CB, BLOCK)
    return source + g0 * before + g1 * previous + g2 * after


@triton.jit
def _one_plus_exp_of_minus(logit):
    """1 / sigmoid; NaN stays NaN."""
    return 1.0 + tl.exp(tl.where(logit < -_HIGHEST, _HIGHEST, -logit))


@triton.jit
def gates_of(l0, l1, l2, first, last, RULE: tl.constexpr):
    """Three gates from three logits.

    Under the sigmoid rule, with d_j = 1 + exp(-l_j), they are n_j / max(n_0 + n_1 + n_2, 1e-7 d_0 d_1 d_2) where
    n_0 = d_1 d_2, n_1 = d_0 d_2, n_2 = d_0 d_1: one division instead of four.
    """
    if RULE == _SIGMOID:
        d0 = tl.where(first, 1.0, _one_plus_exp_of_minus(l0))
        d1 = _one_plus_exp_of_minus(l1)
        d2 = tl.where(last, 1.0, _one_plus_exp_of_minus(l2))
        s0, s1, s2 = tl.where(first, 0.0, d1 * d2), d0 * d2, tl.where(last, 0.0, d0 * d1)
        inverse = 1.0 / tl.maximum(s0 + s1 + s2, (_SMALLEST * d0) * d1 * d2)
        s0, s1, s2 = s0 * inverse, s1 * inverse, s2 * inverse
    else:
        s0, s1, s2, total = weigh(l0, l1, l2, first, last, RULE)
        if RULE < _TANH:
            inverse = inverse_of(total, RULE)
            s0, s1, s2 = s0 * inverse, s1 * inverse, s2 * inverse
    return s0, s1, s2


@triton.jit
def place_row(t, begin, end, lines, cross, reverse, n):
    """Offsets and mask (1, BLOCK) of line t of a vertical scan; nothing is inside unless begin <= t < end."""
    at = tl.where(reverse, lines - 1 - t, t) * cross + n
    return at[None, :], (n < tl.where((t >= begin) & (t < end), cross, 0))[None, :]


@triton.jit
def place_tile(t, begin, end, lines, cross, reverse, n, ALIGNED: tl.constexpr):
    """Offsets and mask (1, BLOCK, 4) of lines t .. t + 3 of a horizontal scan, columns ascending in memory."""
    first = tl.where(reverse, lines - 4 - t, t)
    limit = tl.where((t >= begin) & (t < end), cross, 0)
    if ALIGNED:  # rows start on whole tiles and no tile is cut, which the compiler must know to load it in one piece
        lines = lines // 4 * 4
        first = tl.multiple_of(first, 4)
    col = first + tl.arange(0, 4)
    at = n[:, None] * lines + col[None, :]
    inside = (n < limit)[:, None]
    if not ALIGNED:
        line = tl.where(reverse, lines - 1 - col, col)
        inside = inside & ((line >= begin) & (line < end))[None, :]
    return at[None, :, :], tl.broadcast_to(inside, at.shape)[None, :, :]


@triton.jit
def own_of(at, inside, count, left, CB: tl.constexpr):
    """Offsets and mask of CB channels, `count` elements apart, of which `left` exist, from those of one."""
    if CB == 1:
        return at, inside
    else:
        c = tl.arange(0, CB)
        if len(at.shape) == 2:
            return at + (c * count)[:, None], inside & (c < left)[:, None]
        else:
            return at + (c * count)[:, None, None], inside & (c < left)[:, None, None]


@triton.jit
def apart(tile, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """The four columns of a (CHANNELS, BLOCK, 4) tile."""
    even, odd = tl.split(tl.reshape(tile, (CHANNELS, BLOCK, 2, 2)))
    c0, c2 = tl.split(even)
    c1, c3 = tl.split(odd)
    return c0, c1, c2, c3


@triton.jit
def ordered(l0, l1, l2, l3, reverse, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """The tile whose columns are these lines, in memory order: the inverse of `apart`, also reversed."""
    even = tl.join(tl.where(reverse, l3, l0), tl.where(reverse, l1, l2))
    odd = tl.join(tl.where(reverse, l2, l1), tl.where(reverse, l0, l3))
    return tl.reshape(tl.join(even, odd), (CHANNELS, BLOCK, 4))


@triton.jit
def line_of(J: tl.constexpr, columns, reverse):
    """Line J of a tile that was taken apart; in a reversed scan it is column 3 - J."""
    return tl.where(reverse, columns[3 - J], columns[J])


@triton.jit
def _operands(
    pointers, w, at, inside, own, here, gated, added,
    LOGITS: tl.constexpr, LAM: tl.constexpr, U: tl.constexpr, SKIP: tl.constexpr, MERGE: tl.constexpr,
):  # fmt: skip
    """lam v, the logits, and what makes h a term of the output: y = factor h + rest, with what was added before."""
    v, l0, l1, l2, lam, u, skip, sums = pointers
    x = fetch(v, own, here)
    source, factor, rest = x, x, x
    if LAM != ABSENT:
        source = x * pick(lam, at, inside, own, here, LAM)
    a0, a1, a2 = pick_three(l0, l1, l2, at, inside, own, here, gated, LOGITS)
    if MERGE:
        factor = tl.zeros_like(x) + w
        if U != ABSENT:
            factor = factor * pick(u, at, inside, own, here, U)
        rest = fetch(sums, own, only_if(added, here))
        if SKIP != ABSENT:
            rest += w * pick(skip, at, inside, own, here, SKIP) * x
    return source, a0, a1, a2, factor, rest


@triton.jit
def emit(value, sums, target, own, here, finished, FINISH: tl.constexpr):
    """Store into the float32 sums, or where they are finished into the target in its own type."""
    if FINISH:
        tl.store(target + own, value.to(target.dtype.element_ty), mask=only_if(finished, here))
        tl.store(sums + own, value, mask=only_if(finished == 0, here))
    else:
        tl.store(sums + own, value, mask=here)


@triton.jit
def scan_rows(
    pointers, target, w, added, finished, count, left, lines, cross, chunk, begin, end, reverse,
    LOGITS: tl.constexpr, LAM: tl.constexpr, U: tl.constexpr, SKIP: tl.constexpr, RULE: tl.constexpr,
    MERGE: tl.constexpr, FINISH: tl.constexpr, CB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Walk image rows; add to the output, or without MERGE store h in `target`, which is float32.

    The next row is requested before the current one is finished. The first row of a chunk reads no logits.
    """
    n = tl.arange(0, BLOCK)
    first, last = (n == 0)[None, :], (n == cross - 1)[None, :]
    previous = tl.zeros((CB, BLOCK), tl.float32)
    at, inside = place_row(begin, begin, end, lines, cross, reverse, n)
    own, here = own_of(at, inside, count, left, CB)
    source, a0, a1, a2, factor, rest = _operands(
        pointers, w, at, inside, own, here, begin % chunk != 0, added, LOGITS, LAM, U, SKIP, MERGE
    )
    for t in range(begin, end):
        next_at, next_inside = place_row(t + 1, begin, end, lines, cross, reverse, n)
        next_own, next_here = own_of(next_at, next_inside, count, left, CB)
        next_source, b0, b1, b2, next_factor, next_rest = _operands(
            pointers, w, next_at, next_inside, next_own, next_here, (t + 1) % chunk != 0, added,
            LOGITS, LAM, U, SKIP, MERGE,
        )  # fmt: skip
        g0, g1, g2 = gates_of(a0, a1, a2, first, last, RULE)
        previous = tl.where(t % chunk == 0, source, advance(previous, source, g0, g1, g2, n, CB, BLOCK))
        if MERGE:
            emit(factor * previous + rest, pointers[7], target, own, here, finished, FINISH)
        else:
            tl.store(target + own, previous, mask=here)
        own, here, source, a0, a1, a2 = next_own, next_here, next_source, b0, b1, b2
        factor, rest = next_factor, next_rest


@triton.jit
def _column_step(J: tl.constexpr, t, previous, s, g0, g1, g2, n, chunk, reverse, CB: tl.constexpr, BLOCK: tl.constexpr):
    """Line t + J, from the sources and gates of its tile."""
    source = line_of(J, s, reverse)
    a, b, c = line_of(J, g0, reverse), line_of(J, g1, reverse), line_of(J, g2, reverse)
    return tl.where((t + J) % chunk == 0, source, advance(previous, source, a, b, c, n, CB, BLOCK))


@triton.jit
def scan_columns(
    pointers, target, w, added, finished, count, left, lines, cross, chunk, begin, end, reverse,
    LOGITS: tl.constexpr, LAM: tl.constexpr, U: tl.constexpr, SKIP: tl.constexpr, RULE: tl.constexpr,
    MERGE: tl.constexpr, FINISH: tl.constexpr, CB: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Walk image columns in tiles of four; add to the output, or without MERGE store h, as `scan_rows`."""
    GATES: tl.constexpr = 1 if LOGITS == SHARED else CB
    n = tl.arange(0, BLOCK)
    first, last = (n == 0)[None, :, None], (n == cross - 1)[None, :, None]
    previous = tl.zeros((CB, BLOCK), tl.float32)
    for t in range(begin, end, 4):
        at, inside = place_tile(t, begin, end, lines, cross, reverse, n, ALIGNED)
        own, here = own_of(at, inside, count, left, CB)
        source, a0, a1, a2, factor, rest = _operands(
            pointers, w, at, inside, own, here, chunk > 1, added, LOGITS, LAM, U, SKIP, MERGE
        )
        a0, a1, a2 = gates_of(a0, a1, a2, first, last, RULE)
        s = apart(source, CB, BLOCK)
        g0, g1, g2 = apart(a0, GATES, BLOCK), apart(a1, GATES, BLOCK), apart(a2, GATES, BLOCK)
        h0 = _column_step(0, t, previous, s, g0, g1, g2, n, chunk, reverse, CB, BLOCK)
        h1 = _column_step(1, t, h0, s, g0, g1, g2, n, chunk, reverse, CB, BLOCK)
        h2 = _column_step(2, t, h1, s, g0, g1, g2, n, chunk, reverse, CB, BLOCK)
        previous = _column_step(3, t, h2, s, g0, g1, g2, n, chunk, reverse, CB, BLOCK)
        h = ordered(h0, h1, h2, previous, reverse, CB, BLOCK)
        if MERGE:
            emit(factor * h + rest, pointers[7], target, own, here, finished, FINISH)
        else:
            tl.store(target + own, h, mask=here)
