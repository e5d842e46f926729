"""Levels to a packet's words and back on the CPU, compiled by numba."""

import numpy as np
from numba import njit

from sliceserve.kernels import rans
from sliceserve.kernels.calibrated.cpu_trellis import nominal
from sliceserve.kernels.calibrated.layout import (
    EXTRA_BITS,
    NUM_DIRECT,
    NUM_SYMBOLS,
    SYMBOLS,
    Fault,
)


@njit(cache=True, nogil=True)
def push_row(levels, quantizers, scales, starts, payload, num_lanes, packet):
    """Fill a packet from its end with words and states; the position of the first byte."""
    states = np.full(num_lanes, rans.INITIAL)
    states[0] += payload
    position = packet.size
    for i in range(levels.size - 1, -1, -1):
        lane = i & (num_lanes - 1)
        state = states[lane]
        magnitude = abs(np.int64(levels[i]))
        symbol = SYMBOLS[magnitude]
        if magnitude > 0:
            extra = np.int64(levels[i] < 0)
            if magnitude >= NUM_DIRECT:
                above = magnitude - (NUM_DIRECT - 1) - (1 << (symbol - NUM_DIRECT))
                extra |= above << 1
            room = rans.TOTAL_BITS - EXTRA_BITS[symbol]
            state, position = rans.push(state, extra << room, 1 << room, packet, position)
        row = starts[scales[i], quantizers[i]]
        start = np.int64(row[symbol])
        freq = np.int64(row[symbol + 1]) - start
        states[lane], position = rans.push(state, start, freq, packet, position)
    for lane in range(num_lanes - 1, -1, -1):
        position = rans.finish(states[lane], packet, position)
    return position


@njit(cache=True, nogil=True)
def pop_row(data, position, end, starts, centroids, scales, num_lanes, row):
    """Fill a row from states and words at ``position``; the payload's low bits, and the fault."""
    states = np.empty(num_lanes, np.int64)
    for lane in range(num_lanes):
        states[lane], position = rans.open_stream(data, position, end)
    if position > end:
        return 0, Fault.STATE
    trellis = np.zeros(num_lanes, np.int64)
    for i in range(row.size):
        lane = i & (num_lanes - 1)
        state = states[lane]
        quantizer = trellis[lane] >> 1
        starts_here = starts[scales[i], quantizer]
        symbol = _symbol_at(rans.slot(state), starts_here)
        start = np.int64(starts_here[symbol])
        freq = np.int64(starts_here[symbol + 1]) - start
        state, position = rans.pop(state, start, freq, data, position, end)
        level = symbol
        if symbol > 0:
            bits = EXTRA_BITS[symbol]
            room = rans.TOTAL_BITS - bits
            extra = rans.slot(state) >> room
            state, position = rans.pop(state, extra << room, 1 << room, data, position, end)
            if symbol >= NUM_DIRECT:
                level = NUM_DIRECT - 1 + (1 << (bits - 1)) + (extra >> 1)
            level = -level if extra & 1 else level
        states[lane] = state
        row[i] = value_of(level, scales[i], quantizer, centroids)
        trellis[lane] = quantizer | ((level ^ trellis[lane]) & 1) << 1
    if position != end:
        return 0, Fault.LENGTH
    for lane in range(num_lanes):
        if states[lane] >= (2 * rans.INITIAL if lane == 0 else rans.INITIAL + 1):
            return 0, Fault.END
    return states[0] - rans.INITIAL, Fault.NONE


@njit(forceinline=True)
def _symbol_at(slot, starts):
    symbol = 0
    for s in range(1, NUM_SYMBOLS):
        symbol += starts[s] <= slot
    return symbol


@njit(forceinline=True)
def value_of(level, scale, quantizer, centroids):
    magnitude = abs(np.int64(level))
    if magnitude < NUM_DIRECT:
        value = np.int64(centroids[scale, quantizer, magnitude])
    else:
        value = nominal(magnitude, quantizer)
    return -value if level < 0 else value
