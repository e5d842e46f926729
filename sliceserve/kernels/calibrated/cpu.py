"""The calibrated codec's kernel on the CPU, compiled by numba; byte for byte ``reference``.

The trellis of a lane is walked forward with the costs of its four states in registers. Each state
has two predecessors, a lower and a higher one; a byte per component remembers which of them won,
and where zero did, so the walk back finds the levels from that byte and y. Numbers are int64.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numba import njit

from sliceserve.kernels import rans
from sliceserve.kernels.calibrated import layout
from sliceserve.kernels.calibrated.layout import (
    CLASS_CUT,
    CLASS_SHIFT,
    ESCAPE,
    EXTRA_BITS,
    FRACTION_BITS,
    HEADER_BYTES,
    LEVEL_BITS,
    MAX_INPUT,
    NUM_DIRECT,
    NUM_POINTS,
    NUM_SYMBOLS,
    POINT_BITS,
    RATE_BITS,
    RECIPROCALS,
    SIGMAS,
    SYMBOLS,
    UNREACHABLE,
    CalibratedError,
    Fault,
    Tables,
)

# Bits of the byte that the forward walk leaves: one per state, one per quantizer.
_HIGHER_WON = (1, 2, 4, 8)
_ZERO_WON_BIT = 4

_nominal = njit(layout.nominal, forceinline=True)


def quantize(
    y64: torch.Tensor, points: torch.Tensor, tables: Tables, lambda_: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    layout.expect_lambda(lambda_)
    rows = _numpy(y64, torch.int32)
    levels = np.empty(rows.shape, np.int16)
    quantizers = np.empty(rows.shape, np.uint8)
    classes = np.empty(rows.shape[0], np.uint8)
    index, fault = _quantize_rows(
        rows,
        _numpy(points, torch.uint8),
        *_encoder_tables(tables),
        lambda_,
        levels,
        quantizers,
        classes,
    )
    if fault != Fault.NONE:
        raise CalibratedError(fault, index)
    return torch.from_numpy(levels), torch.from_numpy(quantizers), torch.from_numpy(classes)


def encode(
    y64: torch.Tensor,
    points: torch.Tensor,
    payloads: torch.Tensor,
    tables: Tables,
    lambda_: int,
    payload_bytes: int,
) -> tuple[list[bytes], torch.Tensor]:
    layout.expect_lambda(lambda_)
    layout.expect_payload_bytes(payload_bytes)
    rows = _numpy(y64, torch.int32)
    reconstructed = np.empty(rows.shape, np.int32)
    packets = np.empty((rows.shape[0], tables.max_packet_bytes(payload_bytes)), np.uint8)
    begins = np.empty(rows.shape[0], np.int64)
    index, fault = _encode_rows(
        rows,
        _numpy(points, torch.uint8),
        _numpy(payloads, torch.int32),
        payload_bytes,
        tables.starts,
        *_encoder_tables(tables),
        lambda_,
        packets,
        begins,
        reconstructed,
    )
    if fault != Fault.NONE:
        raise CalibratedError(fault, index)
    cut = [row[begin:].tobytes() for row, begin in zip(packets, begins.tolist(), strict=True)]
    return cut, torch.from_numpy(reconstructed)


def decode(
    packets: Sequence[bytes], tables: Tables, payload_bytes: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    layout.expect_payload_bytes(payload_bytes)
    data, starts = joined(packets)
    rows = np.empty((len(packets), tables.hidden_size), np.int32)
    points = np.empty(len(packets), np.uint8)
    payloads = np.empty(len(packets), np.int32)
    index, fault = _decode_packets(
        data,
        starts,
        payload_bytes,
        tables.starts,
        tables.centroids,
        tables.base_scales,
        tables.num_lanes,
        rows,
        points,
        payloads,
    )
    if fault != Fault.NONE:
        raise CalibratedError(fault, index)
    return torch.from_numpy(rows), torch.from_numpy(points), torch.from_numpy(payloads)


def joined(packets: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """All packets end to end, uint8, and where each begins and the last ends, int64."""
    starts = np.zeros(len(packets) + 1, np.int64)
    np.cumsum([len(packet) for packet in packets], out=starts[1:])
    return np.frombuffer(b"".join(packets), np.uint8), starts


def _numpy(tensor: torch.Tensor, dtype: torch.dtype) -> np.ndarray:
    if tensor.dtype != dtype:
        raise TypeError(f"expected a tensor of {dtype}, got {tensor.dtype}")
    return tensor.contiguous().numpy()


def _encoder_tables(tables: Tables) -> tuple[np.ndarray | int, ...]:
    return (
        tables.rates,
        tables.centroids,
        tables.class_thresholds,
        tables.base_scales,
        tables.num_lanes,
    )


@njit(cache=True, nogil=True)
def _quantize_rows(
    rows,
    points,
    rates,
    centroids,
    class_thresholds,
    base_scales,
    num_lanes,
    lambda_,
    levels,
    quantizers,
    classes,
):
    """(index, fault) of the first row that cannot be encoded, or (-1, Fault.NONE)."""
    scratch = np.empty(rows.shape[1], np.uint8)
    for t in range(rows.shape[0]):
        fault = _input_fault(rows[t], points[t])
        if fault != Fault.NONE:
            return t, fault
        scales = _scales(base_scales, points[t])
        classes[t] = _class_of(rows[t], scales, class_thresholds)
        rates_of_class = rates[classes[t]]
        for lane in range(num_lanes):
            _quantize_lane(
                rows[t, lane::num_lanes],
                scales[lane::num_lanes],
                rates_of_class,
                centroids,
                lambda_,
                scratch,
                levels[t, lane::num_lanes],
                quantizers[t, lane::num_lanes],
            )
    return -1, Fault.NONE


@njit(cache=True, nogil=True)
def _encode_rows(
    rows,
    points,
    payloads,
    payload_bytes,
    starts,
    rates,
    centroids,
    class_thresholds,
    base_scales,
    num_lanes,
    lambda_,
    packets,
    begins,
    reconstructed,
):
    """Write each packet to the end of its row; (index, fault) as ``_quantize_rows``."""
    levels = np.empty((1, rows.shape[1]), np.int16)
    quantizers = np.empty((1, rows.shape[1]), np.uint8)
    classes = np.empty(1, np.uint8)
    for t in range(rows.shape[0]):
        if not 0 <= payloads[t] < 1 << 8 * payload_bytes:
            return t, Fault.PAYLOAD
        _, fault = _quantize_rows(
            rows[t : t + 1],
            points[t : t + 1],
            rates,
            centroids,
            class_thresholds,
            base_scales,
            num_lanes,
            lambda_,
            levels,
            quantizers,
            classes,
        )
        if fault != Fault.NONE:
            return t, fault
        scales = _scales(base_scales, points[t])
        for i in range(rows.shape[1]):
            reconstructed[t, i] = _value(levels[0, i], scales[i], quantizers[0, i], centroids)
        position = _push_row(
            levels[0],
            quantizers[0],
            scales,
            starts[classes[0]],
            payloads[t] & 0xFFFF,
            num_lanes,
            packets[t],
        )
        if payload_bytes == 3:
            position -= 1
            packets[t, position] = payloads[t] >> 16
        position -= HEADER_BYTES
        packets[t, position] = classes[0] << POINT_BITS | points[t]
        begins[t] = position
    return -1, Fault.NONE


@njit(cache=True, nogil=True)
def _input_fault(row, point):
    largest = np.int32(0)
    smallest = np.int32(0)
    for i in range(row.size):
        largest = max(largest, row[i])
        smallest = min(smallest, row[i])
    if largest > MAX_INPUT or smallest < -MAX_INPUT:
        return Fault.INPUT
    if point >= NUM_POINTS:
        return Fault.POINT
    return Fault.NONE


@njit(cache=True, nogil=True)
def _scales(base_scales, point):
    scales = np.empty(base_scales.size, np.uint8)
    for i in range(scales.size):
        scales[i] = max(np.int32(base_scales[i]) - np.int32(point), 0)
    return scales


@njit(cache=True, nogil=True)
def _class_of(row, scales, class_thresholds):
    total = 0
    for i in range(row.size):
        cut = min(abs(row[i]), CLASS_CUT * SIGMAS[scales[i]])
        total += cut * RECIPROCALS[scales[i]] >> CLASS_SHIFT
    class_ = 0
    for threshold in class_thresholds:
        class_ += total >= threshold
    return class_


@njit(cache=True, nogil=True)
def _quantize_lane(row, scales, rates, centroids, lambda_, decisions, levels, quantizers):
    """The path of least cost through a lane's trellis, whose states are numbered as in
    ``reference``: 0 and 2 follow 0 and 1, 1 and 3 follow 2 and 3."""
    cost_0 = 0
    cost_1 = cost_2 = cost_3 = UNREACHABLE
    for i in range(row.size):
        y = np.int64(row[i])
        scale = scales[i]
        even_0, odd_0, zero_0 = _costs(y, 0, rates[scale, 0], centroids[scale, 0], lambda_)
        even_1, odd_1, zero_1 = _costs(y, 1, rates[scale, 1], centroids[scale, 1], lambda_)
        decision = zero_0 << _ZERO_WON_BIT | zero_1 << _ZERO_WON_BIT + 1
        next_0, higher_0 = _better(cost_0 + even_0, cost_1 + odd_0)
        next_1, higher_1 = _better(cost_2 + even_1, cost_3 + odd_1)
        next_2, higher_2 = _better(cost_0 + odd_0, cost_1 + even_0)
        next_3, higher_3 = _better(cost_2 + odd_1, cost_3 + even_1)
        cost_0, cost_1, cost_2, cost_3 = next_0, next_1, next_2, next_3
        decision |= higher_0 | higher_1 << 1 | higher_2 << 2 | higher_3 << 3
        decisions[i] = decision

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
        magnitude = 0
        if parity or not decision >> _ZERO_WON_BIT + quantizer & 1:
            magnitude = _nearest(abs(np.int64(row[i])), quantizer, parity)
        levels[i] = -magnitude if row[i] < 0 else magnitude
        quantizers[i] = quantizer
        state = quantizer << 1 | higher


@njit(forceinline=True)
def _better(lower, higher):
    """The cost of the better predecessor, and whether it is the one of the higher state."""
    return (higher, 1) if higher < lower else (lower, 0)


@njit(forceinline=True)
def _nearest(magnitude, quantizer, parity):
    """Of the two levels around an input, the one of that parity."""
    low = (magnitude + (quantizer << FRACTION_BITS)) >> LEVEL_BITS
    return low + ((low ^ parity) & 1)


@njit(forceinline=True)
def _costs(y, quantizer, rates, centroids, lambda_):
    """The costs of the best even and the best odd level, and whether the even one is zero for
    having won against two."""
    magnitude = abs(y)
    level = _nearest(magnitude, quantizer, 0)
    even = _cost(magnitude, level, quantizer, rates, centroids, lambda_)
    zero_won = 0
    if level == 2:
        zero = _cost(magnitude, 0, quantizer, rates, centroids, lambda_)
        if zero <= even:
            even, zero_won = zero, 1
    level = _nearest(magnitude, quantizer, 1)
    return even, _cost(magnitude, level, quantizer, rates, centroids, lambda_), zero_won


@njit(forceinline=True)
def _cost(magnitude, level, quantizer, rates, centroids, lambda_):
    value = centroids[level] if level < NUM_DIRECT else _nominal(level, quantizer)
    error = magnitude - value
    return error * error + (lambda_ * rates[SYMBOLS[level]] >> RATE_BITS)


@njit(forceinline=True)
def _value(level, scale, quantizer, centroids):
    magnitude = abs(np.int64(level))
    if magnitude < NUM_DIRECT:
        value = np.int64(centroids[scale, quantizer, magnitude])
    else:
        value = _nominal(magnitude, quantizer)
    return -value if level < 0 else value


@njit(cache=True, nogil=True)
def _push_row(levels, quantizers, scales, starts, payload, num_lanes, packet):
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
def _decode_packets(
    data,
    packet_starts,
    payload_bytes,
    starts,
    centroids,
    base_scales,
    num_lanes,
    rows,
    points,
    payloads,
):
    """(index, fault) of the first packet that no encoder wrote, or (-1, Fault.NONE)."""
    prefix = HEADER_BYTES + (payload_bytes == 3)
    for t in range(rows.shape[0]):
        begin, end = packet_starts[t], packet_starts[t + 1]
        if end - begin < prefix + rans.STATE_BYTES * num_lanes:
            return t, Fault.SHORT
        header = data[begin]
        if header & ESCAPE:
            return t, Fault.ESCAPED
        points[t] = header & (NUM_POINTS - 1)
        payload, fault = _pop_row(
            data,
            begin + prefix,
            end,
            starts[header >> POINT_BITS],
            centroids,
            _scales(base_scales, points[t]),
            num_lanes,
            rows[t],
        )
        if fault == Fault.NONE and payload_bytes == 0 and payload > 0:
            fault = Fault.END
        if fault != Fault.NONE:
            return t, fault
        if payload_bytes == 3:
            payload |= np.int64(data[begin + 1]) << 16
        payloads[t] = payload
    return -1, Fault.NONE


@njit(cache=True, nogil=True)
def _pop_row(data, position, end, starts, centroids, scales, num_lanes, row):
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
        row[i] = _value(level, scales[i], quantizer, centroids)
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
