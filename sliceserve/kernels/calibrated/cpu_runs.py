"""Whole runs of tokens through the calibrated codec on the CPU, one compiled call for all of them.

A token is predicted, transformed, coded and followed before the next is looked at. These are the
steps that ``codec.waves`` takes with tensors, and they give the same bits; but one token hands some
fifty operations to PyTorch there, which take it longer than they take.
"""

import math

import numpy as np
from numba import njit

from sliceserve.kernels.calibrated.cpu import decode_packets, encode_rows
from sliceserve.kernels.calibrated.layout import ESCAPE, NUM_POINTS, Fault
from sliceserve.kernels.elements import SUM_IN_LANES, elements, to_float
from sliceserve.kernels.operating_points.cpu import (
    choose_points,
    components_to_units,
    measure_rows,
    stretch_states,
    units_to_components,
)
from sliceserve.kernels.row_products.cpu import multiply_rows

# A codec profile as the functions here take it, in an array of one. All but the last four are
# addresses, of float32 tensors but for ``token_places`` (int32) and ``embeddings`` (as stored); 0
# stands for those that the profile's predictor, or a decoder, does without. Names are those of
# ``codec.profile.Profile``; its ``tokens[id]`` is row ``token_places[id]`` of ``token_rows``.
PROFILE = np.dtype(
    [
        ("mean", np.int64),
        ("offset", np.int64),
        ("token_weight", np.int64),
        ("token_rows", np.int64),
        ("token_places", np.int64),
        ("embeddings", np.int64),
        ("state_weight", np.int64),
        ("basis", np.int64),
        # (d, d) or (d,): what takes a residual into the basis.
        ("inverse", np.int64),
        # (NUM_POINTS,) each: as ``kernels.operating_points`` wants them.
        ("to_units", np.int64),
        ("from_units", np.int64),
        ("stretches", np.int64),
        ("reach", np.int64),
        ("direction", np.int64),
        ("is_diagonal", np.int64),
        ("vocab_size", np.int64),
        # The arguments of ``kernels.operating_points.choose``.
        ("base", np.float64),
        ("shift", np.float64),
        ("max_shift", np.float64),
        ("largest_energy", np.float64),
    ]
)

_F32 = np.float32(0)
_I32 = np.int32(0)


@njit(cache=True, nogil=True)
def encode_runs(
    profiles,
    embedding_like,
    p_x,
    token_ids,
    run_lengths,
    p_previous,
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
    states,
):
    """Tokens x (T, d) → ``packets`` and ``begins`` as ``encode_rows`` writes them, an empty packet
    where no step suits, and ``states`` (T, d) that a decoder will have, undefined there.

    ``run_lengths`` (R,) int64 add up to T; ``p_previous`` (R,) int64 are addresses of the states
    before the runs, 0 where there is none. The first row that is not finite, or -1.
    """
    profile = profiles[0]
    width = base_scales.size
    scratch = np.empty((2, 1, width), np.float32)
    predicted = np.empty((1, width), np.float32)
    components = np.empty((1, width), np.float32)
    measured = np.empty(3, np.float32)
    units = np.empty((1, width), np.int32)
    decoded_units = np.empty((1, width), np.int32)
    point = np.empty(1, np.int64)
    payload = np.empty(1, np.int32)
    t = 0
    for run in range(run_lengths.size):
        p_before = p_previous[run]
        for _ in range(run_lengths[run]):
            p_row = p_x + 4 * t * width
            _predict(profile, embedding_like, token_ids[t], p_before, scratch, predicted)
            _transform(profile, p_row, predicted, scratch[0], components)
            if not _choose_point(profile, p_row, components, measured, point):
                return t
            if point[0] < 0:
                begins[t] = packets.shape[1]
                p_before = 0
                t += 1
                continue
            components_to_units(
                components.ctypes.data,
                point.ctypes.data,
                profile.to_units,
                units.ctypes.data,
                1,
                width,
            )
            payload[0] = token_ids[t] if payload_bytes else 0
            encode_rows(
                units,
                point.astype(np.uint8),
                payload,
                payload_bytes,
                starts,
                rates,
                centroids,
                class_thresholds,
                base_scales,
                num_lanes,
                lambda_,
                packets[t : t + 1],
                begins[t : t + 1],
                decoded_units,
            )
            p_before = states.ctypes.data + 4 * t * width
            _reconstruct(profile, decoded_units, point, predicted, scratch, p_before)
            t += 1
    return -1


@njit(cache=True, nogil=True)
def decode_runs(
    profiles,
    embedding_like,
    data,
    packet_starts,
    run_lengths,
    p_previous,
    payload_bytes,
    starts,
    centroids,
    base_scales,
    num_lanes,
    states,
    p_out,
):
    """Packets, end to end in ``data``, → ``states`` (T, d) that later tokens follow, and ``p_out``
    (T, d), the same with their gains. Rows of packets sent apart are left alone.

    Runs are as ``encode_runs`` takes them. The first row that no encoder wrote, or whose state is
    not finite, or -1.
    """
    profile = profiles[0]
    width = base_scales.size
    scratch = np.empty((2, 1, width), np.float32)
    predicted = np.empty((1, width), np.float32)
    units = np.empty((1, width), np.int32)
    point_byte = np.empty(1, np.uint8)
    point = np.empty(1, np.int64)
    token_id = np.empty(1, np.int32)
    t = 0
    for run in range(run_lengths.size):
        p_before = p_previous[run]
        for _ in range(run_lengths[run]):
            begin = packet_starts[t]
            if begin < packet_starts[t + 1] and data[begin] == ESCAPE:
                p_before = 0
                t += 1
                continue
            _, fault = decode_packets(
                data,
                packet_starts[t : t + 2],
                payload_bytes,
                starts,
                centroids,
                base_scales,
                num_lanes,
                units,
                point_byte,
                token_id,
            )
            if fault != Fault.NONE or token_id[0] >= profile.vocab_size:
                return t
            point[0] = point_byte[0]
            _predict(profile, embedding_like, token_id[0], p_before, scratch, predicted)
            p_before = states.ctypes.data + 4 * t * width
            _reconstruct(profile, units, point, predicted, scratch, p_before)
            p_row = p_out + 4 * t * width
            stretch_states(
                p_before, profile.mean, point.ctypes.data, profile.stretches, p_row, 1, width
            )
            if not _is_finite(elements(p_row, 0, width, _F32)):
                return t
            t += 1
    return -1


@njit(cache=True, nogil=True)
def _predict(profile, embedding_like, token_id, p_before, scratch, out):
    """What ``codec.profile.Profile`` expects of a token behind the state at ``p_before``."""
    width = out.shape[1]
    row, product = scratch[0], scratch[1]
    offset = elements(profile.offset, 0, width, _F32)
    if profile.token_weight == 0:
        out[0] = offset
        return
    embedded = elements(profile.embeddings, np.int64(token_id) * width, width, embedding_like)
    for i in range(width):
        row[0, i] = to_float(embedded[i])
    _multiply(profile.is_diagonal, row, profile.token_weight, product)
    place = np.int64(elements(profile.token_places, token_id, 1, _I32)[0])
    own = elements(profile.token_rows, place * width, width, _F32)
    for i in range(width):
        out[0, i] = offset[i] + own[i] + product[0, i]
    if profile.state_weight == 0:
        return
    mean = elements(profile.mean, 0, width, _F32)
    before = elements(p_before if p_before != 0 else profile.mean, 0, width, _F32)
    for i in range(width):
        row[0, i] = before[i] - mean[i]
    _multiply(profile.is_diagonal, row, profile.state_weight, product)
    for i in range(width):
        out[0, i] += product[0, i]


@njit(cache=True, nogil=True)
def _transform(profile, p_row, predicted, residual, components):
    row = elements(p_row, 0, predicted.shape[1], _F32)
    for i in range(row.size):
        residual[0, i] = row[i] - predicted[0, i]
    _multiply(profile.is_diagonal, residual, profile.inverse, components)


@njit(cache=True, nogil=True)
def _choose_point(profile, p_row, components, measured, point):
    """False if a value of the row is not finite; point -1 if no step suits."""
    width = components.shape[1]
    measure_rows(
        p_row,
        profile.mean,
        profile.direction,
        components.ctypes.data,
        measured.ctypes.data,
        1,
        width,
    )
    # The energy, which may overflow where all values are finite.
    if not math.isfinite(measured[1]) and not _is_finite(elements(p_row, 0, width, _F32)):
        return False
    choose_points(
        measured.ctypes.data,
        profile.base,
        profile.shift,
        profile.max_shift,
        profile.largest_energy,
        profile.reach,
        NUM_POINTS,
        point.ctypes.data,
        1,
    )
    return True


@njit(cache=True, nogil=True)
def _reconstruct(profile, units, point, predicted, scratch, p_state):
    """The state that follows from what was expected and the units of the rest."""
    width = units.shape[1]
    row, residual = scratch[0], scratch[1]
    units_to_components(
        units.ctypes.data, point.ctypes.data, profile.from_units, row.ctypes.data, 1, width
    )
    _multiply(profile.is_diagonal, row, profile.basis, residual)
    state = elements(p_state, 0, width, _F32)
    for i in range(width):
        state[i] = predicted[0, i] + residual[0, i]


@njit(cache=True, nogil=True)
def _multiply(is_diagonal, row, p_matrix, out):
    if is_diagonal:
        diagonal = elements(p_matrix, 0, row.shape[1], _F32)
        for i in range(row.shape[1]):
            out[0, i] = row[0, i] * diagonal[i]
    else:
        multiply_rows(row, p_matrix, out)


@njit(forceinline=True, fastmath=SUM_IN_LANES)
def _is_finite(row):
    # Zero times infinity is NaN, and NaN stays. A sum of the values might overflow.
    total = np.float32(0)
    for i in range(row.size):
        total += row[i] * np.float32(0)
    return total == 0
