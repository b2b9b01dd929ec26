"""Vector arithmetic for numba kernels: a function that LLVM vectorises, and a vector value for loops that it does not.

numba does not notice a change in this file when it reuses cached callers: after an edit, remove the `__pycache__`
folders of the packages that call it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

#: Adding and subtracting 1.5 * 2**23 rounds a float32 of moderate size to the nearest whole number.
_ROUND = np.float32(12582912.0)
_LOG2_E = np.float32(1.44269504)
#: log(2) in two parts: the first has few digits, so that its product with a whole number is exact.
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
#: exp is a normal float32 between these.
_LOWEST, _HIGHEST = np.float32(-87.33654), np.float32(88.37626)
#: Minimax polynomial of (exp(r) - 1 - r) / r**2 on |r| <= log(2) / 2, highest power first (Cephes, expf).
_C5, _C4, _C3, _C2, _C1, _C0 = (
    np.float32(c) for c in (1.98756915e-4, 1.39819995e-3, 8.33345191e-3, 4.16657959e-2, 1.66666655e-1, 5.00000012e-1)
)
_ONE = np.float32(1.0)
_HALF = np.float32(0.5)
#: Polynomial of (log(1 + m) - m + m**2 / 2) / m**3 for 1 + m from sqrt(1/2) to sqrt(2), highest first (Cephes, logf).
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7, _L8 = (
    np.float32(c)
    for c in (
        7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
        -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    )
)  # fmt: skip
#: Polynomial of (tanh(x) - x) / x**3 in x**2 for |x| below 0.625, highest power first (Cephes, tanhf).
_T4, _T3, _T2, _T1, _T0 = (
    np.float32(c) for c in (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
)
_SMALL = np.float32(0.625)
#: Polynomial of 2**r on |r| <= 1/2, highest power first: least relative error (9e-8) among those that are 1 at 0.
_EXP2 = (0.0013264722656, 0.0096715129912, 0.0555073358118, 0.2402224242687, 0.6931470036507, 1.0)


@numba.njit(fastmath={"contract"}, forceinline=True)
def exp32(x):
    """exp(x) for a float32 x, to 1 unit in the last place; x is clamped to [-87.336, 88.376], NaN stays NaN.

    A loop over it becomes vector instructions; `np.exp` in a numba loop is a call per element.
    """
    x = _LOWEST if x < _LOWEST else x
    x = _HIGHEST if x > _HIGHEST else x
    n = (x * _LOG2_E + _ROUND) - _ROUND
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    poly = ((((_C5 * r + _C4) * r + _C3) * r + _C2) * r + _C1) * r + _C0
    two_to_n = np.int32((np.int32(n) + 127) << 23).view(np.float32)
    return (poly * (r * r) + r + _ONE) * two_to_n


@numba.njit(fastmath={"contract"}, forceinline=True, error_model="numpy")
def tanh32(x):
    """tanh(x) for a float32 x, to 2 units in the last place; NaN stays NaN."""
    size = abs(x)
    inverse = exp32(np.float32(-2) * size)
    large = (_ONE - inverse) / (_ONE + inverse)
    square = x * x
    poly = (((_T4 * square + _T3) * square + _T2) * square + _T1) * square + _T0
    small = poly * square * x + x
    return small if size < _SMALL else (large if x > np.float32(0) else -large)


@numba.njit(fastmath={"contract"}, forceinline=True)
def log32(x):
    """The natural logarithm of a normal float32 x > 0, to 2 units in the last place; NaN stays NaN."""
    bits = np.float32(x).view(np.int32)
    exponent = (bits - np.int32(0x3F3504F3)) >> 23  # x = 2**exponent * m with m from sqrt(1/2) to sqrt(2)
    m = np.int32(bits - (exponent << 23)).view(np.float32) - _ONE
    poly = _L0
    poly = poly * m + _L1
    poly = poly * m + _L2
    poly = poly * m + _L3
    poly = poly * m + _L4
    poly = poly * m + _L5
    poly = poly * m + _L6
    poly = poly * m + _L7
    poly = poly * m + _L8
    n, square = np.float32(exponent), m * m
    found = (poly * m * square + n * _LN2_LOW) - _HALF * square + m + n * _LN2_HIGH
    return found if x == x else x


#: Lanes of a `vector`: a register of AVX-512, or of AVX2 (elsewhere LLVM splits it).
WIDTH = 16 if binding.get_host_cpu_features().get("avx512f") else 8
VECTOR = ir.VectorType(ir.FloatType(), WIDTH)
_BITS = ir.VectorType(ir.IntType(32), WIDTH)


class _Vector(types.Type):
    """`WIDTH` float32 side by side in a register; a local value of a kernel, never an argument."""

    def __init__(self) -> None:
        super().__init__(name=f"vector{WIDTH}")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: _Vector) -> None:
        super().__init__(manager, numba_type, VECTOR)


vector = _Vector()


@intrinsic
def zeros(typing_context):
    """A vector of zeros."""

    def build(context, builder, signature, args):
        return ir.Constant(VECTOR, [0.0] * WIDTH)

    return vector(), build


@intrinsic
def load(typing_context, array, index):
    """The vector array[index : index + WIDTH] of a contiguous float32 array in one axis; no bounds check."""

    def build(context, builder, signature, args):
        return builder.load(address(context, builder, signature.args[0], args[0], args[1]), align=4)

    return vector(array, index), build


@intrinsic
def store(typing_context, array, index, value):
    """array[index : index + WIDTH] = value."""

    def build(context, builder, signature, args):
        builder.store(args[2], address(context, builder, signature.args[0], args[0], args[1]), align=4)
        return context.get_dummy_value()

    return types.void(array, index, value), build


@intrinsic
def splat(typing_context, scalar):
    """A vector of copies of a float32."""

    def build(context, builder, signature, args):
        return every_lane(builder, args[0])

    return vector(types.float32), build


def _binary(name: str, combine: Callable[..., Any]) -> Any:
    """An intrinsic of two vectors, lane by lane."""

    @intrinsic
    def operation(typing_context, a, b):
        def build(context, builder, signature, args):
            return combine(builder, *args)

        return vector(a, b), build

    operation.__name__ = name
    return operation


add = _binary("add", lambda b, x, y: b.fadd(x, y, flags=("contract",)))
subtract = _binary("subtract", lambda b, x, y: b.fsub(x, y, flags=("contract",)))
times = _binary("times", lambda b, x, y: b.fmul(x, y, flags=("contract",)))
maximum = _binary("maximum", lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y))


@intrinsic
def total(typing_context, value):
    """The sum over the lanes of a vector, in halves."""

    def build(context, builder, signature, args):
        rest, lanes = args[0], WIDTH
        while lanes > 1:
            lanes //= 2
            low, high = (
                builder.shuffle_vector(rest, rest, lane_numbers(range(start, start + lanes))) for start in (0, lanes)
            )
            rest = builder.fadd(low, high)
        return builder.extract_element(rest, ir.Constant(ir.IntType(32), 0))

    return types.float32(value), build


@intrinsic
def exp2(typing_context, value):
    """2 to the power of every lane, to 2 units in the last place; 0 below 2**-125, at most 2**127; NaN stays NaN."""

    def build(context, builder, signature, args):
        def fixed(number: float) -> ir.Constant:
            return ir.Constant(VECTOR, [number] * WIDTH)

        def times_plus(a: Any, b: Any, c: Any) -> Any:
            return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))

        x = args[0]
        x = builder.select(builder.fcmp_ordered(">", x, fixed(127.0)), fixed(127.0), x)
        # Adding 1.5 * 2**23 leaves the nearest whole number in the low bits; 127 more is the exponent's bias.
        shifted = builder.fadd(x, fixed(float(_ROUND) + 127))
        r = builder.fsub(x, builder.fsub(shifted, fixed(float(_ROUND) + 127)))
        poly = fixed(_EXP2[0])
        for coefficient in _EXP2[1:]:
            poly = times_plus(poly, r, fixed(coefficient))
        bits = builder.shl(builder.bitcast(shifted, _BITS), ir.Constant(_BITS, [23] * WIDTH))
        scaled = builder.fmul(poly, builder.bitcast(bits, VECTOR))
        return builder.select(builder.fcmp_ordered("<", x, fixed(-125.0)), fixed(0.0), scaled)

    return vector(value), build


@intrinsic
def prefetch(typing_context, array, index):
    """Ask for the cache line of array[index] (which may lie outside the array) in the level 2 cache."""

    def build(context, builder, signature, args):
        place = address(context, builder, signature.args[0], args[0], args[1], ir.IntType(8))
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [place, *(ir.Constant(number, n) for n in (0, 2, 1))])
        return context.get_dummy_value()

    return types.void(array, index), build


def every_lane(builder: Any, scalar: Any) -> Any:
    """The vector of copies of a scalar, for the code of an intrinsic."""
    undefined = ir.Constant(VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, lane_numbers([0] * WIDTH))


def lane_numbers(numbers: Iterable[int]) -> ir.Constant:
    """A constant vector of whole numbers, for a shuffle."""
    listed = list(numbers)
    return ir.Constant(ir.VectorType(ir.IntType(32), len(listed)), listed)


def address(context: Any, builder: Any, kind: Any, array: Any, index: Any, of: Any = VECTOR) -> Any:
    """The pointer to array[index] of a contiguous float32 array, for the code of an intrinsic."""
    made = context.make_array(kind)(context, builder, array)
    return builder.bitcast(builder.gep(made.data, [index]), of.as_pointer())
