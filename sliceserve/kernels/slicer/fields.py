"""Fields of raw SLICER packets, for the kernels that numba compiles."""

import numpy as np
from numba import njit

from sliceserve.kernels.slicer import layout

block_end = njit(cache=True, nogil=True)(layout.block_end)


@njit(cache=True, nogil=True)
def put(words, position, field):
    """Write a field of at most 16 bits into zeroed bits."""
    word = position >> 6
    shift = position & 63
    words[word] |= np.uint64(field) << np.uint64(shift)
    if shift > 48:
        words[word + 1] |= np.uint64(field) >> np.uint64(64 - shift)


@njit(cache=True, nogil=True)
def get(data, position, width):
    """The field of at most 16 bits at a bit of ``data``, which has a guard behind it."""
    byte = position >> 3
    window = np.int64(data[byte]) | np.int64(data[byte + 1]) << 8 | np.int64(data[byte + 2]) << 16
    return (window >> (position & 7)) & ((1 << width) - 1)


@njit(cache=True, nogil=True)
def index_bits(hidden_size):
    width = 1
    while (hidden_size - 1) >> width > 0:
        width += 1
    return width


@njit(cache=True, nogil=True)
def log2(num_blocks):
    exponent = 0
    while num_blocks >> exponent > 1:
        exponent += 1
    return exponent


@njit(cache=True, nogil=True)
def read_survivors(data, position, hidden_size, num_kept):
    """The survivors' indices as they stand, how many there are, and the position after them."""
    index = np.empty(max(num_kept, 1), np.int64)
    bits = index_bits(hidden_size)
    if num_kept * bits < hidden_size:
        for r in range(num_kept):
            index[r] = get(data, position + r * bits, bits)
        return index, num_kept, position + num_kept * bits
    count = 0
    for i in range(hidden_size):
        if get(data, position + i, 1):
            if count < num_kept:
                index[count] = i
            count += 1
    return index, count, position + hidden_size
