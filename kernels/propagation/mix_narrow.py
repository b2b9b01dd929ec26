"""Scans of maps that are at most a vector wide and high: a line stays in a register from one to the next.

The vertical directions walk the rows of a plane in place; for the horizontal ones a plane is turned in registers. A
position that reads no line before it has gates of exactly 0 in the scratch (`mix_flat.py`).
"""

import llvmlite.ir as ir
import numba
from numba.core import cgutils

from kernels.vectormath import WIDTH

from .lanes import LANES, block_step
from .mix_flat import ADJOINT, GATES, GRAD, SOURCE, STATE

_INDEX = ir.IntType(64)
_jit = numba.njit(cache=True, fastmath={"contract"})


def _number(value):
    return ir.Constant(_INDEX, value)


def _walk(do, lines, last_first, chunk, back, step):
    """Call step(line, start, state) for each line in turn; start: the line is the first of its chunk.

    `state` is a vector to keep between lines. With `back` the lines are walked from the last to the first.
    """
    b = do.builder
    state = cgutils.alloca_once(b, do.vector)
    b.store(do.fixed(0.0), state)
    with cgutils.for_range_slice(b, _number(0), lines, _number(1), _INDEX) as (i, _):
        mirrored = b.sub(b.sub(lines, _number(1)), i)
        t, other = (mirrored, i) if back else (i, mirrored)
        line = b.select(b.icmp_signed("!=", last_first, _number(0)), other, t)
        step(line, b.icmp_signed("==", b.srem(t, chunk), _number(0)), state)


def _neighbours(do, vector):
    return do.before(do.fixed(0.0), vector), vector, do.after(vector, do.fixed(0.0))


def _scan(do, s, at, pitch, lines, cross, last_first, chunk):
    """h of lines `pitch` apart, from lambda v and gates, all in the rows of s from `at`."""
    b, mask = do.builder, do.first(cross)

    def step(line, start, state):
        place = b.add(at, b.mul(line, pitch))
        source = value = do.load(s, _number(SOURCE), place, mask=mask)
        for j, neighbour in enumerate(_neighbours(do, b.load(state))):
            value = do.plus_product(value, do.load(s, _number(GATES + j), place, mask=mask), neighbour)
        value = b.select(start, source, value)
        do.store(value, s, _number(STATE), place, mask=mask)
        b.store(value, state)

    _walk(do, lines, last_first, chunk, False, step)


def _adjoint(do, s, at, pitch, lines, cross, last_first, chunk):
    """E of lines `pitch` apart, from dh and gates: what a line sends to the one before it is kept in a register."""
    b, mask = do.builder, do.first(cross)

    def step(line, start, state):
        place = b.add(at, b.mul(line, pitch))
        value = do.add(do.load(s, _number(GRAD), place, mask=mask), b.load(state))
        do.store(value, s, _number(ADJOINT), place, mask=mask)
        g0, g1, g2 = (do.product(do.load(s, _number(GATES + j), place, mask=mask), value) for j in range(3))
        sent = do.add(do.add(do.after(g0, do.fixed(0.0)), g1), do.before(do.fixed(0.0), g2))
        b.store(b.select(start, do.fixed(0.0), sent), state)

    _walk(do, lines, last_first, chunk, True, step)


def _turn(do, row, source, at, pitch, target, to, target_pitch):
    """target[row, to + j target_pitch + i] = source[row, at + i pitch + j] for a square of as many as there are lanes.

    The rows are written from the first to the last, so that what one has beyond its end is overwritten by the next.
    """
    b, lanes = do.builder, do.lanes

    def of(start, i, step):
        return b.add(start, b.mul(step, _number(i)))

    rows = [do.load(source, row, of(at, i, pitch)) for i in range(lanes)]
    half = lanes // 2
    while half:
        upper = [lane if not lane & half else lanes + lane - half for lane in range(lanes)]
        lower = [lane + half if not lane & half else lanes + lane for lane in range(lanes)]
        for i in range(lanes):
            if not i & half:
                one, two = rows[i], rows[i + half]
                rows[i], rows[i + half] = do.shuffle(one, two, upper), do.shuffle(one, two, lower)
        half //= 2
    for i, turned in enumerate(rows):
        do.store(turned, target, row, of(to, i, target_pitch))


_steps = {lanes: [block_step(step, lanes) for step in (_scan, _adjoint, _turn)] for lanes in (LANES, WIDTH)}
_scan_8, _adjoint_8, _turn_8 = _steps[LANES]
_scan_16, _adjoint_16, _turn_16 = _steps[WIDTH]


@_jit
def scan_narrow(s, at, height, width, horizontal, reverse, chunk, turned):
    """h of one plane at `at` of the scratch s; turned: scratch of as many rows, a square of the lanes in each."""
    last_first = 1 if reverse else 0
    if max(height, width) <= LANES:
        if horizontal:
            for row in range(GATES, SOURCE + 1):
                _turn_8(row, s, at, width, turned, 0, LANES)
            _scan_8(turned, 0, LANES, width, height, last_first, chunk)
            _turn_8(STATE, turned, 0, LANES, s, at, width)
        else:
            _scan_8(s, at, width, height, width, last_first, chunk)
    elif horizontal:
        for row in range(GATES, SOURCE + 1):
            _turn_16(row, s, at, width, turned, 0, WIDTH)
        _scan_16(turned, 0, WIDTH, width, height, last_first, chunk)
        _turn_16(STATE, turned, 0, WIDTH, s, at, width)
    else:
        _scan_16(s, at, width, height, width, last_first, chunk)


@_jit
def adjoint_narrow(s, at, height, width, horizontal, reverse, chunk, turned):
    """E of one plane, right after `scan_narrow` has turned its gates."""
    last_first = 1 if reverse else 0
    if max(height, width) <= LANES:
        if horizontal:
            _turn_8(GRAD, s, at, width, turned, 0, LANES)
            _adjoint_8(turned, 0, LANES, width, height, last_first, chunk)
            _turn_8(ADJOINT, turned, 0, LANES, s, at, width)
        else:
            _adjoint_8(s, at, width, height, width, last_first, chunk)
    elif horizontal:
        _turn_16(GRAD, s, at, width, turned, 0, WIDTH)
        _adjoint_16(turned, 0, WIDTH, width, height, last_first, chunk)
        _turn_16(ADJOINT, turned, 0, WIDTH, s, at, width)
    else:
        _adjoint_16(s, at, width, height, width, last_first, chunk)
