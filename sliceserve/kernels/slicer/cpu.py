"""SLICER on the CPU, compiled by numba; byte for byte ``reference``.

The K largest of n are found without a sort: floats of one sign order as their bits do, so their
threshold is the number whose 31 bits are settled one after the other, each by a count over the
row, and counts vectorise. Nothing here is a product followed by a sum of floats, so no compiler
can contract one.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numba import njit

from sliceserve.kernels.slicer.compress import shortest
from sliceserve.kernels.slicer.expand import expand
from sliceserve.kernels.slicer.fields import block_end, get, index_bits, log2, put, read_survivors
from sliceserve.kernels.slicer.layout import (
    BLOCK_BITS,
    DISTORTION_SHIFT,
    EXPLANATIONS,
    FORMAT_VERSION,
    GUARD,
    HEADER_BITS,
    INFINITY,
    MAX_BFLOAT16,
    MAX_LOG2_BLOCKS,
    MAX_WIDTH,
    MIN_NORMAL,
    EncoderSettings,
    Fault,
    SlicerError,
    max_packet_bits,
)


def encode(hidden: torch.Tensor, settings: EncoderSettings) -> list[bytes]:
    rows = hidden.to(torch.float32).contiguous().numpy()
    # A field may reach into the word after the last.
    num_words = max_packet_bits(rows.shape[1], settings) // 64 + 2
    words = np.zeros((rows.shape[0], num_words), np.uint64)
    lengths = np.zeros(rows.shape[0], np.int64)
    bad_row = _encode_rows(
        rows,
        settings.num_kept,
        np.float32(settings.asymmetry),
        settings.num_blocks,
        settings.distortion,
        settings.max_bits,
        words,
        lengths,
    )
    if bad_row >= 0:
        raise SlicerError("a value is not finite", bad_row)
    return shortest(words.view(np.uint8), lengths, rows.shape[1])


def decode(packets: Sequence[bytes], out: torch.Tensor) -> None:
    data, starts = checked(packets, out.shape[1])
    direct = out.dtype == torch.float32 and out.is_contiguous()
    rows = out if direct else torch.empty(out.shape, dtype=torch.float32)
    _decode_rows(data, starts, rows.numpy())
    if not direct:
        out.copy_(rows)


def checked(packets: Sequence[bytes], hidden_size: int) -> tuple[np.ndarray, np.ndarray]:
    """All packets in the raw layout, end to end, and where each begins and the last ends.

    Returns uint8 (with a guard behind the last) and int64 (len(packets) + 1,). Raises SlicerError
    for the first packet that is not valid.
    """
    data = np.frombuffer(b"".join([*packets, GUARD]), np.uint8)
    starts = np.zeros(len(packets) + 1, np.int64)
    np.cumsum([len(packet) for packet in packets], out=starts[1:])
    data, starts, num_sound = expand(data, starts, hidden_size)
    index, fault = _first_fault(data, starts, hidden_size)
    if fault == Fault.NONE and num_sound < len(packets):
        index, fault = num_sound, Fault.STREAM
    if fault != Fault.NONE:
        raise SlicerError(EXPLANATIONS[Fault(fault)], index)
    return data, starts


@njit(cache=True, nogil=True)
def _encode_rows(rows, num_kept, asymmetry, num_blocks, distortion, max_bits, words, lengths):
    """Fill ``words`` and ``lengths``; the first row that is not finite, or -1."""
    for t in range(rows.shape[0]):
        row = rows[t]
        magnitude = _magnitudes(row)
        if magnitude.max() >= INFINITY:
            return t
        index = _filter(row, magnitude, num_kept, asymmetry)
        kept = magnitude[index]
        block = _split(kept, num_blocks)
        negative = (row[index] < 0) & (kept > 0)
        lengths[t] = _write(
            words[t], row.size, index, kept, negative, block, num_blocks, distortion, max_bits
        )
    return -1


@njit(cache=True, nogil=True)
def _magnitudes(row):
    """|x| as int32 bits, which order as the values do; subnormal numbers count as zero."""
    bits = np.empty(row.size, np.int32)
    x = row.view(np.int32)
    for i in range(row.size):
        magnitude = x[i] & np.int32(0x7FFFFFFF)
        bits[i] = magnitude if magnitude >= MIN_NORMAL else np.int32(0)
    return bits


@njit(cache=True, nogil=True)
def _largest(key, count):
    """Mask of the ``count`` largest of non-negative int32 keys, ties to the lowest index."""
    threshold = np.int32(0)
    for bit in range(30, -1, -1):
        candidate = np.int32(threshold | (1 << bit))
        at_least = 0
        for i in range(key.size):
            at_least += key[i] >= candidate
        if at_least >= count:
            threshold = candidate
    above = 0
    for i in range(key.size):
        above += key[i] > threshold
    room = count - above
    chosen = np.empty(key.size, np.bool_)
    for i in range(key.size):
        is_tie = key[i] == threshold
        chosen[i] = key[i] > threshold or (is_tie and room > 0)
        room -= is_tie
    return chosen


@njit(cache=True, nogil=True)
def _filter(row, magnitude, num_kept, asymmetry):
    """Ascending indices of the survivors."""
    score = magnitude.view(np.float32).copy()
    for i in range(row.size):
        if row[i] < 0:
            score[i] *= asymmetry
    return np.nonzero(_largest(_magnitudes(score), num_kept))[0]


@njit(cache=True, nogil=True)
def _split(magnitude, num_blocks):
    """Each survivor's block, 0 for the largest magnitudes."""
    block = np.full(magnitude.size, num_blocks - 1)
    for j in range(num_blocks - 1):
        end = block_end(j, magnitude.size, num_blocks)
        block -= _largest(magnitude, end)
    return block


@njit(cache=True, nogil=True)
def _fixed(magnitude, exponent):
    """Float bits as an integer that has 24 bits at ``exponent``, rounded down."""
    if magnitude < MIN_NORMAL:
        return 0
    mantissa = (magnitude & 0x7FFFFF) | 0x800000
    return mantissa >> min(exponent - (magnitude >> 23), 31)


@njit(cache=True, nogil=True)
def _grid(lo, hi):
    """LO, R and the exponent of hi, of a range given as bfloat16 bits."""
    exponent = hi >> 7
    low = _fixed(lo << 16, exponent)
    return low, _fixed(hi << 16, exponent) - low, exponent


@njit(cache=True, nogil=True)
def _level(code, width, low, span):
    return low + (span * (2 * code + 1) >> (width + 1))


@njit(cache=True, nogil=True)
def _code_block(magnitude, distortion, max_bits):
    """lo and hi as bfloat16 bits, the width, and the codes of one block."""
    code = np.zeros(magnitude.size, np.int64)
    if magnitude.size == 0:
        return 0, 0, 0, code
    lo = np.int64(magnitude.min()) >> 16
    hi = min((np.int64(magnitude.max()) + 0xFFFF) >> 16, MAX_BFLOAT16)
    low, span, exponent = _grid(lo, hi)

    value = np.empty(magnitude.size, np.int64)
    largest = (1 << max_bits) - 1
    energy = 0
    for i in range(magnitude.size):
        value[i] = _fixed(np.int64(magnitude[i]), exponent)
        energy += value[i] * value[i]
        # Exact: a quotient of 37 and 24 bits is never as close to the next integer as float64
        # rounds, and the division is faster than the integers'.
        quotient = np.float64((value[i] - low) << max_bits) / np.float64(max(span, 1))
        code[i] = min(np.int64(quotient), largest)

    mask = (1 << DISTORTION_SHIFT) - 1
    budget = (energy >> DISTORTION_SHIFT) * distortion
    budget += ((energy & mask) * distortion) >> DISTORTION_SHIFT
    for width in range(max_bits):
        shift = max_bits - width
        total = 0
        for i in range(magnitude.size):
            error = value[i] - _level(code[i] >> shift, width, low, span)
            total += error * error
        if total <= budget:
            return lo, hi, width, code >> shift
    return lo, hi, max_bits, code


@njit(cache=True, nogil=True)
def _write(words, hidden_size, index, magnitude, negative, block, num_blocks, distortion, max_bits):
    """Code the blocks and lay the packet out; its length in bytes."""
    log2_blocks = log2(num_blocks)
    put(words, 0, FORMAT_VERSION << 4 | log2_blocks)
    put(words, 8, index.size)
    position = HEADER_BITS
    width = np.empty(index.size, np.int64)
    code = np.empty(index.size, np.int64)
    for j in range(num_blocks):
        members = np.nonzero(block == j)[0]
        lo, hi, block_width, block_code = _code_block(magnitude[members], distortion, max_bits)
        for i in range(members.size):
            width[members[i]] = block_width
            code[members[i]] = block_code[i]
        put(words, position, block_width)
        put(words, position + 4, lo)
        put(words, position + 20, hi)
        position += BLOCK_BITS

    bits = index_bits(hidden_size)
    if index.size * bits < hidden_size:
        for r in range(index.size):
            put(words, position + r * bits, index[r])
        position += index.size * bits
    else:
        for r in range(index.size):
            put(words, position + index[r], 1)
        position += hidden_size
    for r in range(index.size):
        put(words, position, block[r] << 1 | negative[r])
        position += 1 + log2_blocks
    for r in range(index.size):
        put(words, position, code[r])
        position += width[r]
    return (position + 7) >> 3


@njit(cache=True, nogil=True)
def _first_fault(data, starts, hidden_size):
    """(index, fault) of the first packet that no encoder wrote, or (-1, Fault.NONE)."""
    for t in range(starts.size - 1):
        fault = _fault(data, starts[t] * 8, starts[t + 1] * 8, hidden_size)
        if fault != Fault.NONE:
            return t, fault
    return -1, Fault.NONE


@njit(cache=True, nogil=True)
def _fault(data, start, end, hidden_size):
    """The fault of the packet in bits [start, end): each field is read only once it is known to
    lie inside."""
    if end - start < HEADER_BITS:
        return Fault.LENGTH
    if get(data, start + 4, 4) != FORMAT_VERSION:
        return Fault.VERSION
    log2_blocks = get(data, start, 4)
    num_kept = get(data, start + 8, 16)
    if log2_blocks > MAX_LOG2_BLOCKS:
        return Fault.NUM_BLOCKS
    if num_kept > hidden_size:
        return Fault.NUM_KEPT
    num_blocks = 1 << log2_blocks
    position = start + HEADER_BITS
    if position + BLOCK_BITS * num_blocks > end:
        return Fault.LENGTH

    code_bits = 0
    block_begin = 0
    for j in range(num_blocks):
        width = get(data, position, 4)
        lo = get(data, position + 4, 16)
        hi = get(data, position + 20, 16)
        position += BLOCK_BITS
        stop = block_end(j, num_kept, num_blocks)
        if width > MAX_WIDTH or (stop == block_begin and width > 0):
            return Fault.WIDTH
        is_zero_or_normal = (lo == 0 or lo << 16 >= MIN_NORMAL) and (
            hi == 0 or hi << 16 >= MIN_NORMAL
        )
        if not (is_zero_or_normal and lo <= hi <= MAX_BFLOAT16):
            return Fault.RANGE
        if stop == block_begin and hi > 0:
            return Fault.RANGE
        code_bits += width * (stop - block_begin)
        block_begin = stop

    survivor_bits = min(hidden_size, num_kept * index_bits(hidden_size))
    last = position + survivor_bits + num_kept * (1 + log2_blocks) + code_bits
    if (last + 7) >> 3 != end >> 3:
        return Fault.LENGTH
    if get(data, last, end - last) != 0:
        return Fault.PADDING

    index, count, position = read_survivors(data, position, hidden_size, num_kept)
    if count != num_kept:
        return Fault.SURVIVORS
    for r in range(num_kept):
        if index[r] >= hidden_size or (r > 0 and index[r] <= index[r - 1]):
            return Fault.SURVIVORS
    members = np.zeros(num_blocks, np.int64)
    for r in range(num_kept):
        members[get(data, position + r * (1 + log2_blocks), 1 + log2_blocks) >> 1] += 1
    block_begin = 0
    for j in range(num_blocks):
        block_begin += members[j]
        if block_begin != block_end(j, num_kept, num_blocks):
            return Fault.MEMBERS
    return Fault.NONE


@njit(cache=True, nogil=True)
def _decode_rows(data, starts, rows):
    for t in range(rows.shape[0]):
        _decode_row(data, starts[t] * 8, rows[t])


@njit(cache=True, nogil=True)
def _decode_row(data, start, row):
    log2_blocks = get(data, start, 4)
    num_kept = get(data, start + 8, 16)
    num_blocks = 1 << log2_blocks
    blocks = np.empty((num_blocks, 3), np.int64)
    scales = np.empty(num_blocks, np.float64)
    position = start + HEADER_BITS
    for j in range(num_blocks):
        blocks[j, 0] = get(data, position, 4)
        low, span, exponent = _grid(get(data, position + 4, 16), get(data, position + 20, 16))
        blocks[j, 1] = low
        blocks[j, 2] = span
        scales[j] = math.ldexp(1.0, exponent - 150)
        position += BLOCK_BITS

    index, _, position = read_survivors(data, position, row.size, num_kept)
    code_position = position + num_kept * (1 + log2_blocks)
    row[:] = 0
    for r in range(num_kept):
        tag = get(data, position, 1 + log2_blocks)
        position += 1 + log2_blocks
        width, low, span = blocks[tag >> 1]
        code = get(data, code_position, width)
        code_position += width
        # 24 bits times a power of two: exact in float64, and in float32 unless subnormal.
        value = _level(code, width, low, span) * scales[tag >> 1]
        if value < 2.0**-126:
            value = 0.0
        row[index[r]] = -value if tag & 1 else value
