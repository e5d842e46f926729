"""The trellis quantizer on the CPU, compiled by numba.

A lane is walked forward with the costs of its four states in registers. Each state has two
predecessors, a lower and a higher one; a byte per component remembers which of them won, and where
zero did, so the walk back finds the levels from that byte and y. Both walks choose by arithmetic
where the data decide: branches that nobody can predict would take twice the time. Numbers are
int64.
"""

import numpy as np
from numba import njit

from sliceserve.kernels.calibrated import layout
from sliceserve.kernels.calibrated.layout import (
    CLASS_CUT,
    CLASS_SHIFT,
    FRACTION_BITS,
    LEVEL_BITS,
    NUM_DIRECT,
    RATE_BITS,
    RECIPROCALS,
    SIGMAS,
    SYMBOLS,
    UNREACHABLE,
)

# Which bits of the byte say that zero won, under quantizer 0 and above it 1; below, one per state.
_ZERO_WON_BIT = 4

nominal = njit(layout.nominal, forceinline=True)


@njit(cache=True, nogil=True)
def scales_at(base_scales, point):
    scales = np.empty(base_scales.size, np.uint8)
    for i in range(scales.size):
        scales[i] = max(np.int32(base_scales[i]) - np.int32(point), 0)
    return scales


@njit(cache=True, nogil=True)
def class_of(row, scales, class_thresholds):
    total = 0
    for i in range(row.size):
        cut = min(abs(row[i]), CLASS_CUT * SIGMAS[scales[i]])
        total += np.int64(cut * RECIPROCALS[scales[i]])
    class_ = 0
    for threshold in class_thresholds:
        class_ += total >> CLASS_SHIFT >= threshold
    return class_


@njit(cache=True, nogil=True)
def quantize_lane(row, scales, rates, centroids, lambda_, decisions, levels, quantizers):
    """The path of least cost through a lane's trellis, whose states are numbered as in
    ``reference``: 0 and 2 follow 0 and 1, 1 and 3 follow 2 and 3."""
    cost_0 = 0
    cost_1 = cost_2 = cost_3 = UNREACHABLE
    for i in range(row.size):
        magnitude = abs(np.int64(row[i]))
        scale = scales[i]
        even_0, odd_0, zero_0 = _costs(magnitude, 0, rates[scale, 0], centroids[scale, 0], lambda_)
        even_1, odd_1, zero_1 = _costs(magnitude, 1, rates[scale, 1], centroids[scale, 1], lambda_)
        next_0, higher_0 = _better(cost_0 + even_0, cost_1 + odd_0)
        next_1, higher_1 = _better(cost_2 + even_1, cost_3 + odd_1)
        next_2, higher_2 = _better(cost_0 + odd_0, cost_1 + even_0)
        next_3, higher_3 = _better(cost_2 + odd_1, cost_3 + even_1)
        cost_0, cost_1, cost_2, cost_3 = next_0, next_1, next_2, next_3
        decision = higher_0 | higher_1 << 1 | higher_2 << 2 | higher_3 << 3
        decisions[i] = decision | zero_0 << _ZERO_WON_BIT | zero_1 << _ZERO_WON_BIT + 1

    state = 0
    least = cost_0
    for other, cost in ((1, cost_1), (2, cost_2), (3, cost_3)):
        if cost < least:
            state, least = other, cost
    for i in range(row.size - 1, -1, -1):
        decision = np.int64(decisions[i])
        higher = decision >> state & 1
        parity = higher ^ state >> 1
        quantizer = state & 1
        zero_won = decision >> _ZERO_WON_BIT + quantizer & ~parity & 1
        magnitude = (1 - zero_won) * _nearest(abs(np.int64(row[i])), quantizer, parity)
        levels[i] = -magnitude if row[i] < 0 else magnitude
        quantizers[i] = quantizer
        state = quantizer << 1 | higher


@njit(forceinline=True)
def _better(lower, higher):
    """The cost of the better predecessor, and whether it is the one of the higher state."""
    return min(lower, higher), np.int64(higher < lower)


@njit(forceinline=True)
def _nearest(magnitude, quantizer, parity):
    """Of the two levels around an input, the one of that parity."""
    low = (magnitude + (quantizer << FRACTION_BITS)) >> LEVEL_BITS
    return low + ((low ^ parity) & 1)


@njit(forceinline=True)
def _costs(magnitude, quantizer, rates, centroids, lambda_):
    """The costs of the best even and the best odd level, and whether the even one is zero for
    having won against two."""
    level = _nearest(magnitude, quantizer, 0)
    even = _cost(magnitude, level, quantizer, rates, centroids, lambda_)
    zero = magnitude * magnitude + (lambda_ * rates[0] >> RATE_BITS)
    zero_won = np.int64(level == 2) & np.int64(zero <= even)
    even = zero if zero_won else even
    level = _nearest(magnitude, quantizer, 1)
    return even, _cost(magnitude, level, quantizer, rates, centroids, lambda_), zero_won


@njit(forceinline=True)
def _cost(magnitude, level, quantizer, rates, centroids, lambda_):
    centroid = centroids[min(level, NUM_DIRECT - 1)]
    error = magnitude - (centroid if level < NUM_DIRECT else nominal(level, quantizer))
    return error * error + (lambda_ * rates[SYMBOLS[level]] >> RATE_BITS)
