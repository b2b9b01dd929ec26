"""Blocks of a matrix product, and transposed squares, held in vector registers: code that numba would not write itself.

Matrices lie row by row in one axis of memory; where one starts, and how far apart its rows are, is counted in floats.
"""

from typing import Any

import llvmlite.ir as ir
import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from kernels.vectormath import VECTOR, WIDTH, address, every_lane, lane_numbers

from .cpu_plan import LANES

#: Typed, because numba compiles a function anew for every literal it is given.
AT_0, EVERY = np.int64(0), np.int64(1)

_INDEX = ir.IntType(64)
_jit = numba.njit(cache=True, error_model="numpy", _nrt=False)


def _block(rows: int, vectors: int) -> Any:
    """An intrinsic that computes `rows` rows of c = s + a b, `vectors` vectors wide, in registers."""

    @intrinsic
    def block(typing_context, c, c_at, c_row, s, s_at, s_row, a, a_at, a_row, a_col, b, b_at, b_row, inner):
        """c[i, l] = s[i, l] + sum over j < inner of a[i, j] b[j, l], with a[i, j] at a_at + i * a_row + j * a_col."""

        def build(context, builder, signature, args):
            c, c_at, c_row, s, s_at, s_row, a, a_at, a_row, a_col, b, b_at, b_row, inner = args
            kinds = signature.args
            lanes = [ir.Constant(_INDEX, v * WIDTH) for v in range(vectors)]

            def places(at: Any, row: Any) -> list[Any]:
                starts = [builder.add(at, builder.mul(row, ir.Constant(_INDEX, i))) for i in range(rows)]
                return [builder.add(start, lane) for start in starts for lane in lanes]

            begin = [
                builder.load(address(context, builder, kinds[3], s, place), align=4) for place in places(s_at, s_row)
            ]
            of_a = [builder.mul(a_row, ir.Constant(_INDEX, i)) for i in range(rows)]
            first, loop, done = builder.block, builder.append_basic_block("terms"), builder.append_basic_block("done")
            builder.branch(loop)
            builder.position_at_end(loop)
            j, at_a, at_b = (builder.phi(_INDEX) for _ in range(3))
            sums = [builder.phi(VECTOR) for _ in begin]
            right = [
                builder.load(address(context, builder, kinds[10], b, builder.add(at_b, lane)), align=4)
                for lane in lanes
            ]
            new = []
            for i in range(rows):
                place = address(context, builder, kinds[6], a, builder.add(at_a, of_a[i]), ir.FloatType())
                left = every_lane(builder, builder.load(place))
                for v in range(vectors):
                    product = builder.fmul(left, right[v], flags=("contract",))
                    new.append(builder.fadd(product, sums[i * vectors + v], flags=("contract",)))
            following = builder.add(j, ir.Constant(_INDEX, 1))
            next_a, next_b = builder.add(at_a, a_col), builder.add(at_b, b_row)
            builder.cbranch(builder.icmp_signed("<", following, inner), loop, done)
            zero = ir.Constant(_INDEX, 0)
            for phi, start, after in zip(
                [j, at_a, at_b, *sums], [zero, a_at, b_at, *begin], [following, next_a, next_b, *new], strict=True
            ):
                phi.add_incoming(start, first)
                phi.add_incoming(after, loop)
            builder.position_at_end(done)
            for value, place in zip(new, places(c_at, c_row), strict=True):
                builder.store(value, address(context, builder, kinds[0], c, place), align=4)
            return context.get_dummy_value()

        i = types.int64
        return types.void(c, i, i, s, i, i, a, i, i, i, b, i, i, i), build

    return block


@intrinsic
def _transpose_square(typing_context, c, c_at, c_row, a, a_at, a_row, factor):
    """c[l, i] = factor * a[i, l] for i, l < WIDTH."""

    def build(context, builder, signature, args):
        c, c_at, c_row, a, a_at, a_row, factor = args
        kinds = signature.args

        def places(kind: Any, array: Any, at: Any, row: Any) -> list[Any]:
            starts = [builder.add(at, builder.mul(row, ir.Constant(_INDEX, i))) for i in range(WIDTH)]
            return [address(context, builder, kind, array, start) for start in starts]

        every = every_lane(builder, factor)
        lines = [builder.fmul(builder.load(place, align=4), every) for place in places(kinds[3], a, a_at, a_row)]
        half = WIDTH // 2
        low = lane_numbers([n // 2 + WIDTH * (n % 2) for n in range(WIDTH)])
        high = lane_numbers([half + n // 2 + WIDTH * (n % 2) for n in range(WIDTH)])
        for _ in range(WIDTH.bit_length() - 1):  # each round riffles the lines; after log2(WIDTH) they are transposed
            pairs = [(lines[i], lines[i + half]) for i in range(half)]
            lines = [builder.shuffle_vector(x, y, lanes) for x, y in pairs for lanes in (low, high)]
        for line, place in zip(lines, places(kinds[0], c, c_at, c_row), strict=True):
            builder.store(line, place, align=4)
        return context.get_dummy_value()

    i = types.int64
    return types.void(c, i, i, a, i, i, types.float32), build


_block_8x2, _block_7x2, _block_8x1 = _block(8, 2), _block(7, 2), _block(8, 1)


@_jit
def multiply(c, c_at, c_row, s, s_at, s_row, a, a_at, a_row, a_col, b, b_at, b_row, rows, lanes, inner):
    """c[i, l] = s[i, l] + sum over j < inner of a[i, j] b[j, l] for i < rows and l < lanes, a multiple of WIDTH.

    a[i, j] is at a_at + i * a_row + j * a_col. Rows are computed by sevens or eights, whichever leaves less over: up to
    seven rows of `c` behind the last are overwritten, and as many of `s` and `a` are read.
    """
    eights, sevens = (rows + 7) // 8 * 8, (rows + 6) // 7 * 7
    lane = 0
    while lane + 2 * WIDTH <= lanes:
        if sevens < eights:
            for i in range(0, rows, 7):
                _block_7x2(
                    c, c_at + i * c_row + lane, c_row, s, s_at + i * s_row + lane, s_row,
                    a, a_at + i * a_row, a_row, a_col, b, b_at + lane, b_row, inner,
                )  # fmt: skip
        else:
            for i in range(0, rows, 8):
                _block_8x2(
                    c, c_at + i * c_row + lane, c_row, s, s_at + i * s_row + lane, s_row,
                    a, a_at + i * a_row, a_row, a_col, b, b_at + lane, b_row, inner,
                )  # fmt: skip
        lane += 2 * WIDTH
    if lane < lanes:
        for i in range(0, rows, 8):
            _block_8x1(
                c, c_at + i * c_row + lane, c_row, s, s_at + i * s_row + lane, s_row,
                a, a_at + i * a_row, a_row, a_col, b, b_at + lane, b_row, inner,
            )  # fmt: skip


@_jit
def transpose(c, c_at, c_row, a, a_at, a_row, rows, cols, factor):
    """c[j, i] = factor * a[i, j]; rows and cols are multiples of WIDTH."""
    for i in range(0, rows, WIDTH):
        for j in range(0, cols, WIDTH):
            _transpose_square(c, c_at + j * c_row + i, c_row, a, a_at + i * a_row + j, a_row, factor)


@_jit
def products(other, depth, cols, start, pitch, others, lanes, channels, weights):
    """weights[j, i] = start[j * pitch + i] + other[j] . own[i]; cols: the own side as columns."""
    multiply(
        weights, AT_0, lanes, start, AT_0, pitch, other, AT_0, depth, EVERY, cols, AT_0, lanes, others, lanes, channels
    )


@_jit
def mix(sums, fresh, weights, lanes, other, depth, count, others, nothing):
    """sums[i] (+)= sum over the other side of weights[j, i] other[j]; fresh: =, not +=."""
    for c in range(0, depth, LANES):
        some = min(LANES, depth - c)
        start, at, pitch = (nothing, AT_0, AT_0) if fresh else (sums, c, depth)
        multiply(sums, c, depth, start, at, pitch, weights, AT_0, EVERY, lanes, other, c, depth, count, some, others)


@_jit
def mix_back(sums, weights, lanes, own, depth, count, others, nothing):
    """sums[j] = sum over the own side of weights[j, i] own[i]."""
    for c in range(0, depth, LANES):
        some = min(LANES, depth - c)
        multiply(sums, c, depth, nothing, AT_0, AT_0, weights, AT_0, lanes, EVERY, own, c, depth, others, some, count)
