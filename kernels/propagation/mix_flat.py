"""What the fused mixer does at every position by itself, as vectors over the flat positions of one or several planes.

A run of planes of one image is a run of positions in memory, and these steps take it without regard to lines: gates
and lambda v before a scan, the merge after it; and on the way back the gradients of all maps. What is made for a run
and one direction lies in a scratch, a row for each kind (`GATES` and so on), with a margin on both sides. Which
neighbours a position reads is in `masks`, a byte for each gate: 0 where it is outside the map or in another chunk.
"""

from functools import lru_cache, partial

import llvmlite.ir as ir
import numba
import numpy as np

from kernels.vectormath import WIDTH

from .lanes import block_step
from .mix_lanes import one_plus_exp_of_minus
from .reference import SMALLEST_SUM

#: The rows of the scratch: three gates; lambda v; h; and for the way back the 1 - sigmoid of three logits, dh and E.
GATES, SOURCE, STATE, REST, GRAD, ADJOINT = 0, 3, 4, 5, 8, 9
ROWS_FORWARD, ROWS_BACKWARD = 5, 10

#: Positions whose products are summed in float32 before they are added in float64, a multiple of `WIDTH`.
SUMMED = 1024

_INDEX = ir.IntType(64)
_BYTE = ir.IntType(8)
_jit = numba.njit(cache=True, fastmath={"contract"})
_step = partial(block_step, lanes=WIDTH)


@lru_cache(maxsize=64)
def neighbour_masks(directions, chunk, height, width, count):
    """(K, 3, count H W, filled up to whole vectors) bytes: whether a position reads the neighbour of each gate."""
    row, col = np.mgrid[:height, :width]
    masks = np.zeros((len(directions), 3, -(-count * height * width // WIDTH) * WIDTH), np.uint8)
    for k, direction in enumerate(directions):
        horizontal = direction in ("left_right", "right_left")
        line, cross, lines, last = (col, row, width, height - 1) if horizontal else (row, col, height, width - 1)
        if direction in ("right_left", "bottom_top"):
            line = lines - 1 - line
        reads = line % min(chunk, lines) != 0
        for j, exists in enumerate((cross > 0, cross >= 0, cross < last)):
            masks[k, j, : count * height * width] = np.tile((reads & exists).ravel(), count)
    masks.flags.writeable = False
    return masks


def _reads(do, masks, n):
    """The lanes of the block at n that read the neighbour of each gate."""
    kind, none = ir.VectorType(_BYTE, do.lanes), ir.Constant(ir.VectorType(_BYTE, do.lanes), [0] * do.lanes)
    rows = (ir.Constant(_INDEX, j) for j in range(3))
    loaded = (do.builder.load(do.pointer(masks, row, n, size=1, kind=kind), align=1) for row in rows)
    return [do.builder.icmp_unsigned("!=", byte, none) for byte in loaded]


def _row(number):
    return ir.Constant(_INDEX, number)


def _gates(do, logits, reads, rest):
    """The gates of three vectors of logits, and with `rest` 1 - sigmoid of each, the middle one negative if S < 1e-7.

    See `mix_lanes.py` for the formula; 2**-40 keeps d_0 d_1 d_2 from overflowing.
    """
    b, one, zero = do.builder, do.fixed(1.0), do.fixed(0.0)
    d = [b.select(read, one_plus_exp_of_minus(do, x), one) for x, read in zip(logits, reads, strict=True)]
    n = [do.product(d[1], d[2]), do.product(d[0], d[2]), do.product(d[0], d[1])]
    least = do.product(do.product(do.fixed(SMALLEST_SUM), d[0]), n[0])
    kept = [b.select(read, part, zero) for read, part in zip(reads, n, strict=True)]
    total = do.add(do.add(kept[0], kept[1]), kept[2])
    few = b.fcmp_ordered("<", total, least)
    inverse = b.fdiv(one, b.select(few, least, total))
    gates = [do.product(part, inverse) for part in kept]
    if not rest:
        return gates, []
    small = do.fixed(2.0**-40)
    inverse = do.product(small, b.fdiv(one, do.product(do.product(small, d[0]), n[0])))
    left = [b.fsub(one, do.product(part, inverse)) for part in n]
    # A sigmoid may round to more than 1, which must not pass for the sign.
    left[1] = b.select(b.fcmp_ordered("<", left[1], zero), zero, left[1])
    left[1] = b.select(few, b.fsub(zero, left[1]), left[1])
    return gates, left


def _prepare(do, logits, l0, l1, l2, masks, lam, k, v, image, at, scratch, margin, n, mask, rest):
    """Gates and lambda v of the block at n, and with `rest` what the logits' gradients need; gives the place in the
    maps and in the scratch."""
    place, here = do.builder.add(at, n), do.builder.add(margin, n)
    loaded = [do.load(logits, row, place, mask=mask) for row in (l0, l1, l2)]
    gates, left = _gates(do, loaded, _reads(do, masks, n), rest)
    for j, gate in enumerate(gates):
        do.store(gate, scratch, _row(GATES + j), here)
    for j, part in enumerate(left):
        do.store(part, scratch, _row(REST + j), here)
    source = do.product(do.load(lam, k, place, mask=mask), do.load(v, image, place, mask=mask))
    do.store(source, scratch, _row(SOURCE), here)
    return place, here


def _forward_step(do, logits, l0, l1, l2, masks, lam, k, v, image, at, scratch, margin, n, mask=None):
    _prepare(do, logits, l0, l1, l2, masks, lam, k, v, image, at, scratch, margin, n, mask, rest=False)


def _backward_step(do, logits, l0, l1, l2, masks, lam, k, v, image, at, scratch, margin, n, u, dy, weight, mask=None):
    place, here = _prepare(do, logits, l0, l1, l2, masks, lam, k, v, image, at, scratch, margin, n, mask, rest=True)
    scaled = do.product(do.splat(weight), do.load(u, k, place, mask=mask))
    do.store(do.product(scaled, do.load(dy, image, place, mask=mask)), scratch, _row(GRAD), here)


def _merge_step(do, u, skip, k, v, image, at, weight, out, first, scratch, margin, n, mask=None):
    b = do.builder
    place = b.add(at, n)
    mixed = do.product(do.load(u, k, place, mask=mask), do.load(scratch, _row(STATE), b.add(margin, n)))
    mixed = do.plus_product(mixed, do.load(skip, k, place, mask=mask), do.load(v, image, place, mask=mask))
    before = b.select(b.icmp_signed("!=", first, _row(0)), do.fixed(0.0), do.load(out, image, place, mask=mask))
    do.store(do.plus_product(before, do.splat(weight), mixed), out, image, place, mask=mask)


def _map_gradients_step(
    do, lam, u, skip, k, v, dy, image, at, weight, dv, first, dlam, du, dskip, sums, scratch, margin, n, mask=None
):
    """dlam = v E, du = weight dy h, dskip = weight dy v, dv += lam E + weight skip dy; sums += dy (u h + skip v)."""
    b = do.builder
    place, here = b.add(at, n), b.add(margin, n)
    h, e = do.load(scratch, _row(STATE), here), do.load(scratch, _row(ADJOINT), here)
    value, grad = do.load(v, image, place, mask=mask), do.load(dy, image, place, mask=mask)
    uk, sk, scaled = (
        do.load(u, k, place, mask=mask),
        do.load(skip, k, place, mask=mask),
        do.product(do.splat(weight), grad),
    )
    do.store(do.product(value, e), dlam, k, place, mask=mask)
    do.store(do.product(scaled, h), du, k, place, mask=mask)
    do.store(do.product(scaled, value), dskip, k, place, mask=mask)
    both = do.plus_product(do.product(sk, scaled), do.load(lam, k, place, mask=mask), e)
    before = b.select(b.icmp_signed("!=", first, _row(0)), do.fixed(0.0), do.load(dv, image, place, mask=mask))
    do.store(do.add(before, both), dv, image, place, mask=mask)
    mixed = do.plus_product(do.product(uk, h), sk, value)
    if mask is not None:  # beyond the end h is whatever the scratch held
        mixed = b.select(mask, mixed, do.fixed(0.0))
    do.store(do.plus_product(do.load(sums, _row(0), _row(0)), grad, mixed), sums, _row(0), _row(0))


def _logit_gradients_step(do, masks, s0, s1, s2, l0, l1, l2, at, dlogits, scratch, margin, n, mask=None):
    """(dg_j - sum of dg_i g_i) g_j (1 - sigmoid_j) with dg_j = E times h at the neighbour, s_j positions away."""
    b, zero = do.builder, do.fixed(0.0)
    place, here = b.add(at, n), b.add(margin, n)
    e = do.load(scratch, _row(ADJOINT), here)
    gates, rest = ([do.load(scratch, _row(row + j), here) for j in range(3)] for row in (GATES, REST))
    grads = [
        b.select(read, do.product(e, do.load(scratch, _row(STATE), b.add(here, shift))), zero)
        for read, shift in zip(_reads(do, masks, n), (s0, s1, s2), strict=True)
    ]
    mean = do.plus_product(do.product(grads[0], gates[0]), grads[1], gates[1])
    mean = do.plus_product(mean, grads[2], gates[2])
    few = b.fcmp_ordered("<", rest[1], zero)
    mean = b.select(few, zero, mean)
    rest[1] = b.select(few, b.fsub(zero, rest[1]), rest[1])
    for row, grad, gate, left in zip((l0, l1, l2), grads, gates, rest, strict=True):
        do.store(do.product(do.product(b.fsub(grad, mean), gate), left), dlogits, row, place, mask=mask)


def _both(generate):
    """A step for whole vectors, and one for the `count` positions after the last of them."""

    def tail(do, *args):
        generate(do, *args[:-1], mask=do.first(args[-1]))

    tail.__name__, tail.__doc__ = generate.__name__ + "_tail", generate.__doc__
    return _step(generate), _step(tail)


_forward_whole, _forward_tail = _both(_forward_step)
_backward_whole, _backward_tail = _both(_backward_step)
_merge_whole, _merge_tail = _both(_merge_step)
_maps_whole, _maps_tail = _both(_map_gradients_step)
_logits_whole, _logits_tail = _both(_logit_gradients_step)


@_jit
def prepare(logits, l0, l1, l2, masks, lam, k, v, image, at, scratch, margin, size):
    """Gates and lambda v of `size` positions from `at` of one direction, into the scratch.

    Maps have a row for each image, or direction and image, that is for k, and logits for each gate, too: l0, l1, l2.
    """
    whole = size - size % WIDTH
    for n in range(0, whole, WIDTH):
        _forward_whole(logits, l0, l1, l2, masks, lam, k, v, image, at, scratch, margin, n)
    if whole < size:
        _forward_tail(logits, l0, l1, l2, masks, lam, k, v, image, at, scratch, margin, whole, size - whole)


@_jit
def prepare_back(logits, l0, l1, l2, masks, lam, k, v, image, at, scratch, margin, u, dy, weight, size):
    """As `prepare`, and also what the gradients need: dh = weight u dy, and the 1 - sigmoid of the logits."""
    whole = size - size % WIDTH
    for n in range(0, whole, WIDTH):
        _backward_whole(logits, l0, l1, l2, masks, lam, k, v, image, at, scratch, margin, n, u, dy, weight)
    if whole < size:
        _backward_tail(
            logits, l0, l1, l2, masks, lam, k, v, image, at, scratch, margin, whole, u, dy, weight, size - whole
        )


@_jit
def merge(u, skip, k, v, image, at, weight, out, first, scratch, margin, size):
    """out += weight (u h + skip v), or = in the first direction."""
    whole = size - size % WIDTH
    for n in range(0, whole, WIDTH):
        _merge_whole(u, skip, k, v, image, at, weight, out, first, scratch, margin, n)
    if whole < size:
        _merge_tail(u, skip, k, v, image, at, weight, out, first, scratch, margin, whole, size - whole)


@_jit
def map_gradients(
    lam, u, skip, k, v, dy, image, at, weight, dv, first, dlam, du, dskip, sums, scratch, margin, size
):  # fmt: skip
    """The gradients of lam, u, skip and v; and the sum of dy (u h + skip v), for which sums is (1, WIDTH)."""
    total, whole = 0.0, size - size % WIDTH
    for start in range(0, size, SUMMED):
        sums[:] = 0
        stop = min(start + SUMMED, whole)
        for n in range(start, stop, WIDTH):
            _maps_whole(
                lam, u, skip, k, v, dy, image, at, weight, dv, first, dlam, du, dskip, sums, scratch, margin, n
            )  # fmt: skip
        if stop == whole < size:
            _maps_tail(
                lam, u, skip, k, v, dy, image, at, weight, dv, first, dlam, du, dskip, sums, scratch, margin, whole,
                size - whole,
            )  # fmt: skip
        for i in range(WIDTH):
            total += sums[0, i]
    return total


@_jit
def logit_gradients(masks, s0, s1, s2, l0, l1, l2, at, dlogits, scratch, margin, size):
    """The gradients of the logits; s_j is how far from a position the neighbour of gate j lies in memory."""
    whole = size - size % WIDTH
    for n in range(0, whole, WIDTH):
        _logits_whole(masks, s0, s1, s2, l0, l1, l2, at, dlogits, scratch, margin, n)
    if whole < size:
        _logits_tail(masks, s0, s1, s2, l0, l1, l2, at, dlogits, scratch, margin, whole, size - whole)
