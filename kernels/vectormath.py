"""Vector arithmetic for numba kernels: a function that LLVM vectorises, and a vector value for loops that it does not.

numba does not notice a change in this file when it reuses cached callers: after an edit, remove the `__pycache__`
folders of the packages that call it.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
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


#: Lanes of a `vector`: a register of AVX-512, or of AVX2 (elsewhere LLVM splits it).
WIDTH = 16 if binding.get_host_cpu_features().get("avx512f") else 8
_VECTOR = ir.VectorType(ir.FloatType(), WIDTH)


class _Vector(types.Type):
    """`WIDTH` float32 side by side in a register; a local value of a kernel, never an argument."""

    def __init__(self) -> None:
        super().__init__(name=f"vector{WIDTH}")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: _Vector) -> None:
        super().__init__(manager, numba_type, _VECTOR)


vector = _Vector()


@intrinsic
def zeros(typing_context):
    """A vector of zeros."""

    def build(context, builder, signature, args):
        return ir.Constant(_VECTOR, [0.0] * WIDTH)

    return vector(), build


@intrinsic
def load(typing_context, array, index):
    """The vector array[index : index + WIDTH] of a contiguous float32 array in one axis; no bounds check."""

    def build(context, builder, signature, args):
        return builder.load(_address(context, builder, signature, args), align=4)

    return vector(array, index), build


@intrinsic
def store(typing_context, array, index, value):
    """array[index : index + WIDTH] = value."""

    def build(context, builder, signature, args):
        builder.store(args[2], _address(context, builder, signature, args), align=4)
        return context.get_dummy_value()

    return types.void(array, index, value), build


@intrinsic
def multiply_add(typing_context, scalar, value, total):
    """The vector scalar * value + total, with one rounding where the processor can."""

    def build(context, builder, signature, args):
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        first = builder.insert_element(undefined, args[0], ir.Constant(ir.IntType(32), 0))
        every = builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH))
        product = builder.fmul(every, args[1], flags=("contract",))
        return builder.fadd(product, args[2], flags=("contract",))

    return vector(scalar, value, total), build


def _address(context, builder, signature, args):
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return builder.bitcast(builder.gep(array.data, [args[1]]), _VECTOR.as_pointer())
