"""From the entropy-coded layout of SLICER packets to the raw one, compiled by numba.

Whatever the bytes are, at most as many symbols are popped as elements and codes have bits. What a
stream cannot get wrong by its nature is not looked at here; the raw packet is checked whole.
"""

import numpy as np
from numba import njit

from sliceserve.kernels import rans
from sliceserve.kernels.rans import pop_bit, pop_field
from sliceserve.kernels.slicer.fields import block_end, get, index_bits, put
from sliceserve.kernels.slicer.layout import (
    BLOCK_BITS,
    CODED,
    FORMAT_VERSION,
    HEADER_BITS,
    MAX_LOG2_BLOCKS,
    MAX_WIDTH,
    SIGNS_AT_ONCE,
)
from sliceserve.kernels.slicer.odds import ODDS, entry, room_by_node, share

_HEADER_BYTES = HEADER_BITS // 8


def expand(
    data: np.ndarray, starts: np.ndarray, hidden_size: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Packets of any bytes, end to end → the same in the raw layout.

    data: uint8 with three more bytes behind the last packet; starts: (T + 1,) int64, where each
    begins and the last ends. Returns both anew, up to the first packet whose entropy-coded fields
    are damaged, and how many packets that is. Packets in the raw layout pass unseen.
    """
    raw_starts = np.zeros(starts.size, np.int64)
    num_sound = _raw_starts(data, starts, hidden_size, raw_starts)
    words = np.zeros(raw_starts[num_sound] // 8 + 2, np.uint64)
    num_sound = _expand_rows(data, starts[: num_sound + 1], hidden_size, words, raw_starts)
    return words.view(np.uint8), raw_starts[: num_sound + 1], num_sound


@njit(cache=True, nogil=True)
def _is_coded(data, start, end):
    return end - start >= _HEADER_BYTES and data[start] >> 3 == (FORMAT_VERSION << 4 | CODED) >> 3


@njit(cache=True, nogil=True)
def _raw_starts(data, starts, hidden_size, raw_starts):
    """Fill in where packets begin once they are raw; how many precede the first damaged one."""
    blocks = np.empty((1 << MAX_LOG2_BLOCKS, 4), np.int64)
    for t in range(starts.size - 1):
        start, end = starts[t], starts[t + 1]
        length = end - start
        if _is_coded(data, start, end):
            length = _raw_length(data, start, end, hidden_size, blocks)
        if length < 0:
            return t
        raw_starts[t + 1] = raw_starts[t] + length
    return starts.size - 1


@njit(cache=True, nogil=True)
def _raw_length(data, start, end, hidden_size, blocks):
    """Bytes in the raw layout of an entropy-coded packet, -1 if its header is damaged."""
    log2_blocks = np.int64(data[start]) & 7
    num_kept = get(data, 8 * start + 8, 16)
    if log2_blocks > MAX_LOG2_BLOCKS or num_kept > hidden_size:
        return -1
    num_blocks = 1 << log2_blocks
    _pop_blocks(data, start, end, num_blocks, blocks)
    position = HEADER_BITS + BLOCK_BITS * num_blocks
    position += min(hidden_size, num_kept * index_bits(hidden_size))
    position += num_kept * (1 + log2_blocks)
    before = 0
    for j in range(num_blocks):
        if blocks[j, 0] > MAX_WIDTH:
            return -1
        after = block_end(j, num_kept, num_blocks)
        position += (after - before) * blocks[j, 0]
        before = after
    return (position + 7) >> 3


@njit(cache=True, nogil=True)
def _expand_rows(data, starts, hidden_size, words, raw_starts):
    """Write raw packets to zeroed words; how many precede the first damaged one."""
    blocks = np.empty((1 << MAX_LOG2_BLOCKS, 4), np.int64)
    raw = words.view(np.uint8)
    for t in range(starts.size - 1):
        start, end = starts[t], starts[t + 1]
        if not _is_coded(data, start, end):
            raw[raw_starts[t] : raw_starts[t + 1]] |= data[start:end]
        elif not _expand_row(data, start, end, hidden_size, blocks, words, 8 * raw_starts[t]):
            return t
    return starts.size - 1


@njit(cache=True, nogil=True)
def _expand_row(data, start, end, hidden_size, blocks, words, raw_start):
    """Write the raw packet from bit ``raw_start`` on; whether the stream is sound."""
    log2_blocks = np.int64(data[start]) & 7
    num_kept = get(data, 8 * start + 8, 16)
    num_blocks = 1 << log2_blocks
    state, position = _pop_blocks(data, start, end, num_blocks, blocks)
    survivors = raw_start + HEADER_BITS + BLOCK_BITS * num_blocks
    bits = index_bits(hidden_size)
    is_list = num_kept * bits < hidden_size
    tags = survivors + (num_kept * bits if is_list else hidden_size)
    codes = tags + num_kept * (1 + log2_blocks)
    index = np.empty(num_kept + 1, np.int64)
    state, position = _pop_mask(index, hidden_size, state, data, position, end)
    for r in range(num_kept):
        if is_list:
            put(words, survivors + r * bits, index[r])
        else:
            put(words, survivors + index[r], 1)
    for r in range(0, num_kept, SIGNS_AT_ONCE):
        num_signs = min(SIGNS_AT_ONCE, num_kept - r)
        signs, state, position = pop_field(num_signs, state, data, position, end)
        for i in range(num_signs):
            put(words, tags + (r + i) * (1 + log2_blocks), (signs >> i) & 1)
    room = room_by_node(num_kept, num_blocks)
    for r in range(num_kept):
        node = 1
        for _ in range(log2_blocks):
            freq = share(room[2 * node + 1], room[node])
            upper, state, position = pop_bit(freq, state, data, position, end)
            room[node] -= 1
            node = 2 * node + upper
        room[node] -= 1
        block = node - num_blocks
        put(words, tags + r * (1 + log2_blocks), block << 1)
        width, skew = blocks[block, 0], blocks[block, 3]
        num_skewed = min(skew, width)
        code = np.int64(0)
        for place in range(num_skewed):
            freq = ODDS[entry(skew, place)]
            bit, state, position = pop_bit(freq, state, data, position, end)
            code = code << 1 | bit
        rest, state, position = pop_field(width - num_skewed, state, data, position, end)
        put(words, codes, code << (width - num_skewed) | rest)
        codes += width
    if not rans.is_closed(state, position, end):
        return False
    return _put_header(words, raw_start, log2_blocks, num_kept, blocks, state - rans.INITIAL)


@njit(cache=True, nogil=True)
def _pop_mask(index, hidden_size, state, data, position, end):
    """Fill in the survivors' indices, of which ``index`` has room for one more."""
    num_kept = index.size - 1
    r = 0
    for i in range(hidden_size):
        freq = share(num_kept - r, hidden_size - i)
        survives, state, position = pop_bit(freq, state, data, position, end)
        # Written in any case: half of all branches here would be foretold wrong.
        index[r] = i
        r += survives
    return state, position


@njit(cache=True, nogil=True)
def _put_header(words, position, log2_blocks, num_kept, blocks, hi):
    """Header and blocks of a raw packet; whether the ranges, of which the first ends at ``hi``,
    fit their fields."""
    put(words, position, FORMAT_VERSION << 4 | log2_blocks)
    put(words, position + 8, num_kept)
    position += HEADER_BITS
    for j in range(1 << log2_blocks):
        lo = hi - blocks[j, 1]
        if lo < 0:
            return False
        put(words, position, blocks[j, 0])
        put(words, position + 4, lo)
        put(words, position + 20, hi)
        position += BLOCK_BITS
        hi = lo + 1 - blocks[j, 2]
        if hi < 0:
            return False
    return True


@njit(cache=True, nogil=True)
def _pop_blocks(data, start, end, num_blocks, blocks):
    """Fill ``blocks`` (16, 4) with each one's width, hi − lo, lo + 1 − the next one's hi, and skew;
    the state and position after them."""
    state, position = rans.open_stream(data, start + _HEADER_BYTES, end)
    for j in range(num_blocks):
        blocks[j] = 0
        blocks[j, 0], state, position = pop_field(4, state, data, position, end)
        if blocks[j, 0] > 1:
            blocks[j, 3], state, position = pop_field(4, state, data, position, end)
        blocks[j, 1], state, position = _pop_number(state, data, position, end)
        if j < num_blocks - 1:
            blocks[j, 2], state, position = _pop_number(state, data, position, end)
    return state, position


@njit(cache=True, nogil=True)
def _pop_number(state, data, position, end):
    length, state, position = pop_field(4, state, data, position, end)
    number = np.int64(length > 0)
    for _ in range(length - 1):
        bit, state, position = pop_field(1, state, data, position, end)
        number = number << 1 | bit
    return number, state, position
