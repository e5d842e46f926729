"""From the raw layout of SLICER packets to the entropy-coded one, compiled by numba.

Every device writes the raw layout and integers alone decide the rest, so that all agree on every
byte.
"""

import numpy as np
from numba import njit

from sliceserve.kernels.rans import TOTAL, note_bit, note_field, price, push_noted
from sliceserve.kernels.slicer.fields import get, read_survivors
from sliceserve.kernels.slicer.layout import (
    BLOCK_BITS,
    CODED,
    HEADER_BITS,
    MAX_SKEW,
    MAX_WIDTH,
    SIGNS_AT_ONCE,
    SKEWED,
)
from sliceserve.kernels.slicer.odds import ODDS, entry, room_by_node, share

_HEADER_BYTES = HEADER_BITS // 8
# A number's length in bits stands in four.
_NUMBER_BITS = 15


# What a zero and a one cost, for every entry of SKEWED.
_PRICES = np.array([[price(TOTAL - freq), price(freq)] for freq in SKEWED])


def shortest(rows: np.ndarray, lengths: np.ndarray, hidden_size: int) -> list[bytes]:
    """Raw packets as they go over the wire: each in the layout that makes it shorter.

    rows: (T, n) uint8, packets with at least three more bytes; lengths: (T,) int64, in bytes.
    """
    coded = np.empty(rows.shape, np.uint8)
    begins = np.empty(lengths.size, np.int64)
    _code_rows(rows, lengths, hidden_size, coded, begins)
    return [
        (coded[t, begin:length] if begin > 0 else rows[t, :length]).tobytes()
        for t, (begin, length) in enumerate(zip(begins.tolist(), lengths.tolist(), strict=True))
    ]


@njit(cache=True, nogil=True)
def _code_rows(rows, lengths, hidden_size, coded, begins):
    """Fill the ends of ``coded`` up to ``lengths``; ``begins`` is 0 where raw is as short."""
    for t in range(lengths.size):
        starts, freqs, payload = _symbols(rows[t], hidden_size)
        # The header stands in front, and one byte must be saved.
        begin = push_noted(
            starts, freqs, starts.size, payload, coded[t, : lengths[t]], 1 + _HEADER_BYTES
        )
        begins[t] = max(begin - _HEADER_BYTES, 0)
        if begin > 0:
            header = coded[t, begin - _HEADER_BYTES : begin]
            header[:] = rows[t, :_HEADER_BYTES]
            header[0] |= CODED


@njit(cache=True, nogil=True)
def _symbols(data, hidden_size):
    """What a raw packet says, as symbols of the stream: their starts and frequencies, and the
    payload."""
    log2_blocks = get(data, 0, 4)
    num_kept = get(data, 8, 16)
    num_blocks = 1 << log2_blocks
    position = HEADER_BITS + BLOCK_BITS * num_blocks
    index, _, position = read_survivors(data, position, hidden_size, num_kept)
    block, negative, code = _survivors(data, position, num_kept, log2_blocks)
    skew = _skews(data, block, code, num_blocks)

    per_survivor = 1 + log2_blocks + MAX_WIDTH
    max_symbols = 2 * (2 + _NUMBER_BITS) * num_blocks + hidden_size + num_kept * per_survivor
    starts = np.empty(max_symbols, np.int64)
    freqs = np.empty(max_symbols, np.int64)
    count = _note_blocks(starts, freqs, data, num_blocks, skew)
    count = _note_mask(starts, freqs, count, index, num_kept, hidden_size)
    for r in range(0, num_kept, SIGNS_AT_ONCE):
        signs = negative[r : r + SIGNS_AT_ONCE]
        field = 0
        for i in range(signs.size):
            field |= signs[i] << i
        count = note_field(starts, freqs, count, field, signs.size)
    room = room_by_node(num_kept, num_blocks)
    for r in range(num_kept):
        node = 1
        for level in range(log2_blocks - 1, -1, -1):
            upper = (block[r] >> level) & 1
            freq = share(room[2 * node + 1], room[node])
            count = note_bit(starts, freqs, count, upper, freq)
            room[node] -= 1
            node = 2 * node + upper
        room[node] -= 1
        width = get(data, HEADER_BITS + BLOCK_BITS * block[r], 4)
        num_skewed = min(skew[block[r]], width)
        for place in range(num_skewed):
            bit = (code[r] >> (width - 1 - place)) & 1
            count = note_bit(starts, freqs, count, bit, ODDS[entry(skew[block[r]], place)])
        count = note_field(starts, freqs, count, code[r], width - num_skewed)
    return starts[:count], freqs[:count], get(data, HEADER_BITS + 20, 16)


@njit(cache=True, nogil=True)
def _note_mask(starts, freqs, count, index, num_kept, hidden_size):
    """Which elements survive: the ascending ``index``."""
    r = 0
    for i in range(hidden_size):
        left = num_kept - r
        survives = left > 0 and index[r] == i
        count = note_bit(starts, freqs, count, survives, share(left, hidden_size - i))
        r += survives
    return count


@njit(cache=True, nogil=True)
def _survivors(data, position, num_kept, log2_blocks):
    """Block, sign and code of every survivor of a raw packet whose tags begin at ``position``."""
    block = np.empty(num_kept, np.int64)
    negative = np.empty(num_kept, np.int64)
    code = np.empty(num_kept, np.int64)
    code_position = position + num_kept * (1 + log2_blocks)
    for r in range(num_kept):
        tag = get(data, position + r * (1 + log2_blocks), 1 + log2_blocks)
        block[r] = tag >> 1
        negative[r] = tag & 1
        width = get(data, HEADER_BITS + BLOCK_BITS * block[r], 4)
        code[r] = get(data, code_position, width)
        code_position += width
    return block, negative, code


@njit(cache=True, nogil=True)
def _skews(data, block, code, num_blocks):
    """The skew that makes each block's codes cheapest, the least where several do."""
    ones = np.zeros((num_blocks, MAX_WIDTH), np.int64)
    sizes = np.zeros(num_blocks, np.int64)
    for r in range(block.size):
        sizes[block[r]] += 1
        width = get(data, HEADER_BITS + BLOCK_BITS * block[r], 4)
        for place in range(width):
            ones[block[r], place] += (code[r] >> (width - 1 - place)) & 1
    skews = np.zeros(num_blocks, np.int64)
    for j in range(num_blocks):
        width = get(data, HEADER_BITS + BLOCK_BITS * j, 4)
        if width < 2:
            continue
        least = 1 << 62
        for skew in range(MAX_SKEW + 1):
            cost = 0
            for place in range(width):
                zero, one = _PRICES[entry(skew, place)]
                cost += ones[j, place] * one + (sizes[j] - ones[j, place]) * zero
            if cost < least:
                least = cost
                skews[j] = skew
    return skews


@njit(cache=True, nogil=True)
def _note_blocks(starts, freqs, data, num_blocks, skew):
    count = 0
    position = HEADER_BITS
    for j in range(num_blocks):
        width = get(data, position, 4)
        lo = get(data, position + 4, 16)
        hi = get(data, position + 20, 16)
        position += BLOCK_BITS
        count = note_field(starts, freqs, count, width, 4)
        if width > 1:
            count = note_field(starts, freqs, count, skew[j], 4)
        count = _note_number(starts, freqs, count, hi - lo)
        if j < num_blocks - 1:
            count = _note_number(starts, freqs, count, lo + 1 - get(data, position + 20, 16))
    return count


@njit(cache=True, nogil=True)
def _note_number(starts, freqs, count, number):
    length = 0
    while number >> length > 0:
        length += 1
    count = note_field(starts, freqs, count, length, 4)
    for place in range(length - 2, -1, -1):
        count = note_field(starts, freqs, count, number >> place, 1)
    return count
