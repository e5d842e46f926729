"""rANS primitives for kernels compiled by numba; byte for byte ``reference``.

A decoder never reads outside its stream and need not look after each symbol: past the end words
read as zero while the position goes on, and ``is_closed`` then says no. So a loop over a bounded
number of symbols is bounded whatever the bytes are.
"""

import numpy as np
from numba import njit

TOTAL_BITS = 12
TOTAL = 1 << TOTAL_BITS
STATE_BYTES = 4
# The lower end of the states, and the encoder's first one but for its payload.
INITIAL = 1 << 16

_WORD_BITS = 16
# A state of freq << _ROOM_BITS or more has no room for the symbol until a word has left it.
_ROOM_BITS = 32 - TOTAL_BITS


def max_bytes(num_symbols: int) -> int:
    """The longest stream of so many symbols: each sends one word away at most."""
    return STATE_BYTES + 2 * num_symbols


def price(freq: int) -> int:
    """What a symbol of this frequency, 1 to 4096, costs in 1/256 bits, rounded up.

    In integers, so that encoders that compare prices decide alike on every machine.
    """
    return 256 * TOTAL_BITS + 1 - (freq**256).bit_length()


@njit(forceinline=True)
def push(state, start, freq, out, position):
    """Encode the symbol whose slots are [start, start + freq), 1 <= freq <= 4096.

    ``out`` (uint8) is filled towards its front; ``position`` is its first byte in use, at least
    two more than zero. Returns the new state and position.
    """
    if state >= freq << _ROOM_BITS:
        position = _put_word(state, out, position)
        state >>= _WORD_BITS
    # Of 32 bits, which processors divide in half the time.
    quotient = np.int64(np.uint32(state) // np.uint32(freq))
    return state + quotient * (TOTAL - freq) + start, position


@njit(forceinline=True)
def finish(state, out, position):
    """Put the last state in front; the stream is ``out[position:]`` from the position returned."""
    position = _put_word(state >> _WORD_BITS, out, position)
    return _put_word(state, out, position)


@njit(forceinline=True)
def open_stream(data, position, end):
    """The state and the position after it, of a stream in bytes [position, end) of ``data``.

    Where no encoder's state stands, the position is past the end, which ``is_closed`` refuses.
    """
    low = _word(data, position, end)
    high = _word(data, position + 2, end)
    position = position + STATE_BYTES if high > 0 else end + 1
    return high << _WORD_BITS | low, position


@njit(forceinline=True)
def slot(state):
    return state & (TOTAL - 1)


@njit(forceinline=True)
def pop(state, start, freq, data, position, end):
    """Leave behind the symbol that ``slot(state)`` points at. Returns state and position."""
    state = freq * (state >> TOTAL_BITS) + slot(state) - start
    if state < INITIAL:
        state = state << _WORD_BITS | _word(data, position, end)
        position += 2
    return state, position


@njit(forceinline=True)
def is_closed(state, position, end):
    """Whether a stream of which all symbols are popped ended with its bytes, in a state that an
    encoder begins in; its payload is then ``state - INITIAL``."""
    return position == end and INITIAL <= state < 2 * INITIAL


@njit(forceinline=True)
def _put_word(word, out, position):
    out[position - 1] = np.uint8(word >> 8)
    out[position - 2] = np.uint8(word)
    return position - 2


@njit(forceinline=True)
def _word(data, position, end):
    if position + 2 > end:
        return np.int64(0)
    return np.int64(data[position]) | np.int64(data[position + 1]) << 8


@njit(cache=True, nogil=True)
def normalise(counts):
    """Frequencies that add up to TOTAL and cost the counted symbols few bits.

    counts: (n,) int64 from 0 to 2^40, not all zero, at most TOTAL of them not zero. Returns (n,)
    int64, zero where the count is zero, else at least 1. A greedy exchange decides, in integers
    and with ties to the lowest symbol, so that every machine finds the same.
    """
    freqs = np.zeros(counts.size, np.int64)
    total = counts.sum()
    for i in range(counts.size):
        if counts[i] > 0:
            freqs[i] = max(1, counts[i] * TOTAL // total)
    spare = TOTAL - freqs.sum()
    while spare != 0:
        step = 1 if spare > 0 else -1
        freqs[_cheapest(counts, freqs, step)] += step
        spare -= step
    return freqs


@njit(cache=True, nogil=True)
def _cheapest(counts, freqs, step):
    """The symbol that gains most by one slot more, or loses least by one less.

    n·log((f + 1) / f) is near 2n / (2f + 1): fractions, compared by their cross products.
    """
    best = -1
    for i in range(counts.size):
        if counts[i] == 0 or freqs[i] + step < 1:
            continue
        if best < 0:
            best = i
            continue
        this = counts[i] * (2 * freqs[best] + step)
        other = counts[best] * (2 * freqs[i] + step)
        if (this > other) if step > 0 else (this < other):
            best = i
    return best


@njit(cache=True, nogil=True)
def cumulate(freqs):
    """(n,) frequencies → (n + 1,) starts: symbol s has the slots [starts[s], starts[s + 1])."""
    starts = np.zeros(freqs.size + 1, np.int64)
    for i in range(freqs.size):
        starts[i + 1] = starts[i] + freqs[i]
    return starts


@njit(cache=True, nogil=True)
def symbols_by_slot(starts):
    """(n + 1,) starts → (TOTAL,) int16, the symbol at each slot; n of at most TOTAL."""
    symbols = np.empty(TOTAL, np.int16)
    for symbol in range(starts.size - 1):
        symbols[starts[symbol] : starts[symbol + 1]] = symbol
    return symbols
