"""The steps of the fused mixer on the CPU, eight float32 lanes at a time: gates from logits inside the scan, the merge.

With d_j = 1 + exp(-l_j), 1 over the sigmoid, the gates of a position are n_j / max(n_0 + n_1 + n_2, 1e-7 d_0 d_1 d_2)
where n_0 = d_1 d_2, n_1 = d_0 d_2, n_2 = d_0 d_1: one division instead of four. For a neighbour that does not exist n_j
is 0 and d_j is 1. Logits are raised to -34, below which d_0 d_1 d_2 would overflow; that moves a gate by at most 2e-8.
"""

import llvmlite.ir as ir
import numba

from .lanes import LANES, block_step, tail_masks, transposed_columns
from .reference import SMALLEST_SUM

_INDEX = ir.IntType(64)

#: exp is a normal float32 from the lowest on, and its cube does not overflow at the highest.
_LOWEST, _HIGHEST = -87.33654, 34.0
#: As in kernels/vectormath.py, `exp32`: what rounds to a whole number, log2 e, log 2 in two parts, and Cephes' expf.
_ROUND, _LOG2_E, _LN2_HIGH, _LN2_LOW = 12582912.0 + 127, 1.44269504, 0.693359375, -2.12194440e-4
_EXP = (1.98756915e-4, 1.39819995e-3, 8.33345191e-3, 4.16657959e-2, 1.66666655e-1, 5.00000012e-1)


def one_plus_exp_of_minus(do, x):
    """1 + exp(-x) for x of at least -34; NaN stays NaN."""
    b, fixed = do.builder, do.fixed
    x = b.fsub(fixed(0.0), x)
    for limit, beyond in ((fixed(_LOWEST), "<"), (fixed(_HIGHEST), ">")):
        x = b.select(b.fcmp_ordered(beyond, x, limit), limit, x)
    # Adding 1.5 * 2**23 leaves the nearest whole number in the low bits; 127 more is the exponent's bias.
    shifted = do.plus_product(fixed(_ROUND), x, fixed(_LOG2_E))
    n = b.fsub(shifted, fixed(_ROUND))
    r = do.plus_product(do.plus_product(x, n, fixed(-_LN2_HIGH)), n, fixed(-_LN2_LOW))
    poly = fixed(_EXP[0])
    for coefficient in _EXP[1:]:
        poly = do.plus_product(fixed(coefficient), poly, r)
    poly = do.plus_product(do.add(r, fixed(1.0)), poly, do.product(r, r))
    two_to_n = b.bitcast(b.shl(b.bitcast(shifted, do.numbers), ir.Constant(do.numbers, [23] * do.lanes)), do.vector)
    return do.plus_product(fixed(1.0), poly, two_to_n)


def _ends(do, n, cross):
    """Which lanes of the block at n are the first position of a line of `cross`, and which the last."""
    b, lanes = do.builder, ir.Constant(do.numbers, list(range(do.lanes)))
    first = b.icmp_signed("==", lanes, do.every(b.sub(ir.Constant(_INDEX, 0), n)))
    last = b.icmp_signed("==", lanes, do.every(b.sub(b.sub(cross, ir.Constant(_INDEX, 1)), n)))
    return first, last


def _gates(do, logits, first, last):
    """The gates of three vectors of logits."""
    b, one, zero = do.builder, do.fixed(1.0), do.fixed(0.0)
    d0, d1, d2 = (one_plus_exp_of_minus(do, logit) for logit in logits)
    d0, d2 = b.select(first, one, d0), b.select(last, one, d2)
    n0, n1, n2 = do.product(d1, d2), do.product(d0, d2), do.product(d0, d1)
    least = do.product(do.product(do.fixed(SMALLEST_SUM), d0), n0)
    n0, n2 = b.select(first, zero, n0), b.select(last, zero, n2)
    total = do.add(do.add(n0, n1), n2)
    total = b.select(b.fcmp_ordered("<", total, least), least, total)
    # Divided here, and not after the gates have met the line before: the next line would wait for it.
    inverse = b.fdiv(one, total)
    return [do.product(n, inverse) for n in (n0, n1, n2)]


def _line(do, v, lam, logits, cross, r, states, before, now, keep):
    """One line of a scan from logits, None on a line that reads none before it; keep(n, source, value, mask) stores."""

    def step(n, windows, mask):
        left, here, right = windows[0]
        source = do.load(v, r, n, mask=mask)
        value = source if lam is None else do.product(source, do.load(lam, r, n, mask=mask))
        if logits is not None:
            neighbours = do.before(left, here), here, do.after(here, right)
            loaded = [do.load(logit, r, n, mask=mask) for logit in logits]
            for gate, neighbour in zip(_gates(do, loaded, *_ends(do, n, cross)), neighbours, strict=True):
                value = do.plus_product(value, gate, neighbour)
        do.store(value, states, now, n, LANES)
        keep(n, source, value, mask)

    do.along(cross, [(states, before)], step)


def _add_merged(do, value, source, u, skip, weight, out, r, n, mask):
    """out[r, n] += weight (u[r, n] value + skip[r, n] source), eight lanes."""
    mixed = do.product(do.load(u, r, n, mask=mask), value)
    mixed = do.plus_product(mixed, do.load(skip, r, n, mask=mask), source)
    do.store(do.plus_product(do.load(out, r, n, mask=mask), do.splat(weight), mixed), out, r, n, mask=mask)


def _merging(do, u, skip, weight, out, r):
    return lambda n, source, value, mask: _add_merged(do, value, source, u, skip, weight, out, r, n, mask)


def _storing(do, h, r):
    return lambda n, source, value, mask: do.store(value, h, r, n, mask=mask)


@block_step
def mix_line(do, v, lam, l0, l1, l2, u, skip, weight, out, cross, r, states, before, now):
    """out[r] += weight (u h + skip v)[r] with h[r] = lam[r] v[r] + the gates of logits[r] times the line before.

    The line before is states[before], after a margin of one block; this one is kept in states[now].
    """
    _line(do, v, lam, (l0, l1, l2), cross, r, states, before, now, _merging(do, u, skip, weight, out, r))


@block_step
def mix_first_line(do, v, lam, u, skip, weight, out, cross, r, states, now):
    """As `mix_line` on the first line of a chunk, whose logits nobody reads."""
    _line(do, v, lam, None, cross, r, states, now, now, _merging(do, u, skip, weight, out, r))


@block_step
def gated_line(do, x, l0, l1, l2, cross, r, h, states, before, now):
    """h[r] = x[r] + the gates of logits[r] times the line before; states as in `mix_line`."""
    _line(do, x, None, (l0, l1, l2), cross, r, states, before, now, _storing(do, h, r))


@block_step
def first_line(do, x, cross, r, h, states, now):
    """As `gated_line` on the first line of a chunk: h[r] = x[r]."""
    _line(do, x, None, None, cross, r, states, now, now, _storing(do, h, r))


def _merge(do, h, c, u, skip, v, weight, out, load_masks, store_masks):
    columns = transposed_columns(do, h, None, ir.Constant(_INDEX, 0), c, load_masks)
    for j, (column, mask) in enumerate(zip(columns, store_masks, strict=True)):
        row, start = do.at(c, j), ir.Constant(_INDEX, 0)
        source = do.load(v, row, start, mask=mask)
        _add_merged(do, column, source, u, skip, weight, out, row, start, mask)


@block_step
def _merge_block(do, h, c, u, skip, v, weight, out):
    """out[c + j, i] += weight (u[c + j, i] h[i, c + j] + skip[c + j, i] v[c + j, i]) for i, j < 8."""
    _merge(do, h, c, u, skip, v, weight, out, [None] * LANES, [None] * LANES)


@block_step
def _merge_tail(do, h, c, u, skip, v, weight, out, rows, cols):
    """As `_merge_block` for i < rows and j < cols, at most 8 each."""
    _merge(do, h, c, u, skip, v, weight, out, *tail_masks(do, rows, cols))


@numba.njit(cache=True)
def merge_columns(h, u, skip, v, weight, out):
    """out[j, i] += weight (u[j, i] h[i, j] + skip[j, i] v[j, i]) for at most 8 rows of h, arrays of contiguous rows."""
    count, width = h.shape
    for j in range(0, width, LANES):
        if count == LANES and j + LANES <= width:
            _merge_block(h, j, u, skip, v, weight, out)
        else:
            _merge_tail(h, j, u, skip, v, weight, out, count, min(LANES, width - j))
