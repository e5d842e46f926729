"""The rANS coder that every entropy-coded packet shares (Duda, arXiv 1311.2540).

One lane, a state of 32 bits that lives in [2^16, 2^32), renormalised 16 bits at a time, and
frequencies that add up to ``TOTAL`` = 4096. Symbols are pushed last to first, so that they are
popped first to last. A stream is, in bytes, all words little-endian:

    4       the state that the encoder ended in
    2 each  the words that the decoder takes in, in the order in which it takes them

The encoder begins in ``INITIAL`` + payload, where any 16 bits may be the payload: the decoder ends
in that state and so gets them back. A codec without one begins in ``INITIAL`` and refuses any
other end, which catches most damage to a stream.

``cpu`` has primitives for the numba kernels of codecs. All numbers are int64, bytes uint8.

    INITIAL + payload                                   the state to begin with
    push(state, start, freq, out, position)             one symbol in → state, position
    finish(state, out, position)                        the state's own four bytes → position
    open_stream(data, position, end)                    → state, position
    slot(state)                                         the place in 0..4095 of the next symbol
    pop(state, start, freq, data, position, end)        that symbol out → state, position
    is_closed(state, position, end)                     whether the stream ended where it should

    normalise(counts)                                   counts → frequencies that add up to 4096
    cumulate(freqs)                                     frequencies → starts, each and the total
    symbols_by_slot(starts)                             starts → the symbol at each of 4096 slots
    price(freq)                                         what a symbol costs, in 1/256 bits

``fields`` codes what needs no table, and pushes a packet's symbols once all are noted. Of an
encoder's symbols, ``starts`` and ``freqs`` (int64, long enough) hold the first ``count``.

    note_field(starts, freqs, count, field, width)      w bits, all values alike → count
    note_bit(starts, freqs, count, bit, freq)           a one with odds of freq in 4096 → count
    push_noted(starts, freqs, count, payload, out, first)   all of them in → where the stream begins
    pop_field(width, state, data, position, end)        → field, state, position
    pop_bit(freq, state, data, position, end)           → bit, state, position

``reference`` says in Python's integers what a stream is.
"""

from sliceserve.kernels.rans.cpu import (
    INITIAL,
    STATE_BYTES,
    TOTAL,
    TOTAL_BITS,
    cumulate,
    finish,
    is_closed,
    max_bytes,
    normalise,
    open_stream,
    pop,
    price,
    push,
    slot,
    symbols_by_slot,
)
from sliceserve.kernels.rans.fields import note_bit, note_field, pop_bit, pop_field, push_noted

__all__ = [
    "INITIAL",
    "STATE_BYTES",
    "TOTAL",
    "TOTAL_BITS",
    "cumulate",
    "finish",
    "is_closed",
    "max_bytes",
    "normalise",
    "note_bit",
    "note_field",
    "open_stream",
    "pop",
    "pop_bit",
    "pop_field",
    "price",
    "push",
    "push_noted",
    "slot",
    "symbols_by_slot",
]
