"""The calibrated codec's kernel on the CPU, compiled by numba; byte for byte ``reference``."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from numba import njit

from sliceserve.kernels import rans
from sliceserve.kernels.calibrated import layout
from sliceserve.kernels.calibrated.cpu_packets import pop_row, push_row, value_of
from sliceserve.kernels.calibrated.cpu_trellis import class_of, quantize_lane, scales_at
from sliceserve.kernels.calibrated.layout import (
    ESCAPE,
    MAX_INPUT,
    NUM_POINTS,
    POINT_BITS,
    CalibratedError,
    Fault,
    Tables,
)


def quantize(
    y64: torch.Tensor, points: torch.Tensor, tables: Tables, lambda_: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    layout.expect_lambda(lambda_)
    y64, points, _ = layout.expect_rows(y64, points, points.int(), tables)
    rows = y64.numpy()
    levels = np.empty(rows.shape, np.int16)
    quantizers = np.empty(rows.shape, np.uint8)
    classes = np.empty(rows.shape[0], np.uint8)
    index, fault = _quantize_rows(
        rows,
        points.numpy(),
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
    y64, points, payloads = layout.expect_rows(y64, points, payloads, tables)
    rows = y64.numpy()
    reconstructed = np.empty(rows.shape, np.int32)
    packets = np.empty((rows.shape[0], tables.max_packet_bytes(payload_bytes)), np.uint8)
    begins = np.empty(rows.shape[0], np.int64)
    index, fault = encode_rows(
        rows,
        points.numpy(),
        payloads.numpy(),
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
    index, fault = decode_packets(
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
    starts = np.fromiter(accumulate(map(len, packets), initial=0), np.int64, len(packets) + 1)
    return np.frombuffer(b"".join(packets), np.uint8), starts


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
        scales = scales_at(base_scales, points[t])
        classes[t] = class_of(rows[t], scales, class_thresholds)
        rates_of_class = rates[classes[t]]
        for lane in range(num_lanes):
            quantize_lane(
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
def encode_rows(
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
        scales = scales_at(base_scales, points[t])
        for i in range(rows.shape[1]):
            reconstructed[t, i] = value_of(levels[0, i], scales[i], quantizers[0, i], centroids)
        position = push_row(
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
        # The header.
        position -= 1
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
def decode_packets(
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
    prefix = 1 + (payload_bytes == 3)
    for t in range(rows.shape[0]):
        begin, end = packet_starts[t], packet_starts[t + 1]
        if end - begin < prefix + rans.STATE_BYTES * num_lanes:
            return t, Fault.SHORT
        header = data[begin]
        if header & ESCAPE:
            return t, Fault.ESCAPED
        points[t] = header & (NUM_POINTS - 1)
        payload, fault = pop_row(
            data,
            begin + prefix,
            end,
            starts[header >> POINT_BITS],
            centroids,
            scales_at(base_scales, points[t]),
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
