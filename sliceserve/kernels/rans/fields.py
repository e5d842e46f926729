"""Symbols that need no table: fields whose values are all alike, and bits of known odds.

An encoder notes its symbols, starts and frequencies, first to last, as a decoder pops them, and
pushes them in the end last to first. ``note_field`` and ``note_bit`` return the new count.
"""

import numpy as np
from numba import njit

from sliceserve.kernels.rans.cpu import (
    INITIAL,
    STATE_BYTES,
    TOTAL,
    TOTAL_BITS,
    finish,
    pop,
    push,
    slot,
)


@njit(forceinline=True)
def note_field(starts, freqs, count, field, width):
    """The low ``width`` bits, 0 to 12, of ``field``."""
    if width == 0:
        return count
    starts[count] = (field & ((1 << width) - 1)) << (TOTAL_BITS - width)
    freqs[count] = TOTAL >> width
    return count + 1


@njit(forceinline=True)
def note_bit(starts, freqs, count, bit, freq):
    """A bit that is one with probability freq / 4096; nothing where that makes it certain."""
    if freq == 0 or freq == TOTAL:
        return count
    starts[count] = 0 if bit else freq
    freqs[count] = freq if bit else TOTAL - freq
    return count + 1


@njit(cache=True, nogil=True)
def push_noted(starts, freqs, count, payload, out, first):
    """The stream of the first ``count`` symbols, at the end of ``out`` (uint8).

    Returns where it begins, or -1 if that would be before ``first``.
    """
    state = INITIAL + payload
    position = out.size
    i = count - 1
    while i >= 0 and position >= first + STATE_BYTES:
        state, position = push(state, starts[i], freqs[i], out, position)
        i -= 1
    if i >= 0 or position < first + STATE_BYTES:
        return -1
    return finish(state, out, position)


@njit(forceinline=True)
def pop_field(width, state, data, position, end):
    """A field of ``width`` bits, the state and the position after it."""
    if width == 0:
        return np.int64(0), state, position
    field = slot(state) >> (TOTAL_BITS - width)
    start = field << (TOTAL_BITS - width)
    state, position = pop(state, start, TOTAL >> width, data, position, end)
    return field, state, position


@njit(forceinline=True)
def pop_bit(freq, state, data, position, end):
    """A bit that is one with probability freq / 4096, the state and the position after it."""
    if freq == 0 or freq == TOTAL:
        return np.int64(freq == TOTAL), state, position
    bit = np.int64(slot(state) < freq)
    start = np.int64(0) if bit else freq
    state, position = pop(state, start, freq if bit else TOTAL - freq, data, position, end)
    return bit, state, position
