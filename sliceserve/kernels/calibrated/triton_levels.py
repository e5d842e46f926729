"""What both Triton kernels know of a component: its scale, and what its levels stand for."""

import triton
import triton.language as tl

from sliceserve.kernels.calibrated import layout

_NUM_DIRECT = tl.constexpr(layout.NUM_DIRECT)
_STEP = tl.constexpr(1 << layout.FRACTION_BITS)
_LEVEL_BITS = tl.constexpr(layout.LEVEL_BITS)


@triton.jit
def scale_at(p_base_scales, i, mask, point):
    return tl.maximum(tl.load(p_base_scales + i, mask=mask, other=0).to(tl.int32) - point, 0)


@triton.jit
def extra_bits(symbol):
    return tl.where(symbol < _NUM_DIRECT, tl.minimum(symbol, 1), symbol - (_NUM_DIRECT - 1))


@triton.jit
def value_of(level, row, quantizer, p_centroids):
    """The magnitude that a level's magnitude stands for."""
    is_direct = level < _NUM_DIRECT
    nominal = (level << _LEVEL_BITS) - quantizer * _STEP
    centroid = tl.load(p_centroids + row * _NUM_DIRECT + level, mask=is_direct, other=0)
    return tl.where(is_direct, centroid, nominal)
