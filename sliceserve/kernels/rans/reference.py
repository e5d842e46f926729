"""rANS in Python's integers: what the bytes of a stream are by definition."""

from collections.abc import Sequence

TOTAL = 4096
INITIAL = 1 << 16


def encode(symbols: Sequence[int], freqs: Sequence[int], payload: int = 0) -> bytes:
    """``symbols`` of one table, which adds up to 4096, with 16 bits of payload, as a stream."""
    state = INITIAL + payload
    words = []
    for symbol in reversed(symbols):
        freq = freqs[symbol]
        if state >= freq << 20:
            words.append(state & 0xFFFF)
            state >>= 16
        state = (state // freq) * TOTAL + state % freq + sum(freqs[:symbol])
    return state.to_bytes(4, "little") + b"".join(
        word.to_bytes(2, "little") for word in reversed(words)
    )


def decode(stream: bytes, freqs: Sequence[int], num_symbols: int) -> tuple[list[int], int]:
    """The symbols and the payload. Raises ValueError for a stream that ``encode`` did not write."""
    state = int.from_bytes(stream[:4], "little")
    if len(stream) < 4 or state < INITIAL:
        raise ValueError("the stream does not begin with a state")
    words = [stream[i : i + 2] for i in range(4, len(stream), 2)]
    symbols = []
    for _ in range(num_symbols):
        slot = state % TOTAL
        symbol = next(s for s in range(len(freqs)) if slot < sum(freqs[: s + 1]))
        state = freqs[symbol] * (state // TOTAL) + slot - sum(freqs[:symbol])
        if state < INITIAL:
            if not words or len(words[0]) < 2:
                raise ValueError("the stream ends before its symbols do")
            state = state << 16 | int.from_bytes(words.pop(0), "little")
        symbols.append(symbol)
    if words or not INITIAL <= state < 2 * INITIAL:
        raise ValueError("the stream does not end where its symbols do")
    return symbols, state - INITIAL
