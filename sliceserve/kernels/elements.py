"""Elements of CPU tensors inside numba functions.

numba knows neither bfloat16 nor float16, and wrapping a tensor as a NumPy array costs more than
the arithmetic on one row. So kernels take addresses, and a scalar of the NumPy type that stands
for the elements' format (``storage_scalar``): float32 for itself, uint16 for bfloat16 and int16
for float16. One compilation then serves every shape and stride.
"""

import numpy as np
import torch
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

# What lets LLVM vectorise sums. The order of a sum then depends on its length alone, so equal rows
# still give equal bits; infinities and NaN keep their meaning.
SUM_IN_LANES = {"contract", "nsz", "reassoc"}

_STORAGE = {
    torch.float32: np.float32(0),
    torch.bfloat16: np.uint16(0),
    torch.float16: np.int16(0),
}
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(np.log(2) - 0.693359375)
_EXP_TERMS = tuple(np.float32(1 / term) for term in (5040, 720, 120, 24, 6, 2, 1, 1))


def storage_scalar(dtype: torch.dtype) -> np.generic:
    """The scalar that tells a kernel how ``dtype`` is stored."""
    if dtype not in _STORAGE:
        known = ", ".join(str(known) for known in _STORAGE)
        raise TypeError(f"the CPU kernels compute on {known}, not {dtype}; convert the tensor")
    return _STORAGE[dtype]


@intrinsic
def _pointer(typingctx, address, offset, like):
    pointer_type = types.CPointer(like)

    def codegen(context, builder, signature, args):
        base = builder.inttoptr(args[0], context.get_value_type(pointer_type))
        return builder.gep(base, [args[1]])

    return pointer_type(types.int64, types.int64, like), codegen


@njit(forceinline=True)
def elements(address, offset, count, like):
    """The ``count`` elements that begin ``offset`` elements after ``address``, as an array."""
    return carray(_pointer(address, offset, like), (count,))


@intrinsic
def to_float(typingctx, element):
    """The float32 value of a stored element."""

    def codegen(context, builder, signature, args):
        (value,) = args
        if element == types.float32:
            return value
        if element == types.int16:
            return builder.fpext(builder.bitcast(value, ir.HalfType()), ir.FloatType())
        bits = builder.zext(value, ir.IntType(32))
        return builder.bitcast(builder.shl(bits, ir.Constant(bits.type, 16)), ir.FloatType())

    return types.float32(element), codegen


@intrinsic
def from_float(typingctx, value, like):
    """A float32 rounded to the nearest element, ties to even."""

    def codegen(context, builder, signature, args):
        value = args[0]
        if like == types.float32:
            return value
        if like == types.int16:
            return builder.bitcast(builder.fptrunc(value, ir.HalfType()), ir.IntType(16))
        i32 = ir.IntType(32)
        bits = builder.bitcast(value, i32)
        is_odd = builder.and_(builder.lshr(bits, ir.Constant(i32, 16)), ir.Constant(i32, 1))
        rounded = builder.add(bits, builder.add(is_odd, ir.Constant(i32, 0x7FFF)))
        # Rounding would carry some NaNs into infinity.
        is_nan = builder.fcmp_unordered("uno", value, value)
        rounded = builder.select(is_nan, ir.Constant(i32, 0x7FC00000), rounded)
        return builder.trunc(builder.lshr(rounded, ir.Constant(i32, 16)), ir.IntType(16))

    return like(types.float32, like), codegen


# Not SUM_IN_LANES: reassociation would undo the split of ln 2.
@njit(forceinline=True, fastmath={"contract"})
def exp(x):
    """e to the x in float32, to about one unit in the last place. Unlike libm's, it vectorises.

    Held within [-87, 88], where it neither underflows nor overflows.
    """
    x = np.float32(88) if x > np.float32(88) else x
    x = np.float32(-87) if x < np.float32(-87) else x
    exponent = np.rint(x * np.float32(1 / np.log(2)))
    rest = (x - exponent * _LN2_HIGH) - exponent * _LN2_LOW
    series = _EXP_TERMS[0]
    for term in _EXP_TERMS[1:]:
        series = series * rest + term
    # Sign, exponent and no mantissa: a bfloat16's bits are a power of two's.
    power = to_float(np.uint16((np.int32(exponent) + np.int32(127)) << np.int32(7)))
    return series * power
