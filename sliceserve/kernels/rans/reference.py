"""rANS in Python's integers: what the bytes of a stream are by definition.

A symbol is an interval (start, freq) of the slots 0..4095.
"""

from collections.abc import Sequence

TOTAL = 4096
INITIAL = 1 << 16


def encode(intervals: Sequence[tuple[int, int]], payload: int = 0) -> bytes:
    """The stream from which ``Decoder`` pops these symbols and then 16 bits of payload."""
    state = INITIAL + payload
    words = []
    for start, freq in reversed(intervals):
        if state >= freq << 20:
            words.append(state & 0xFFFF)
            state >>= 16
        state = (state // freq) * TOTAL + state % freq + start
    return state.to_bytes(4, "little") + b"".join(
        word.to_bytes(2, "little") for word in reversed(words)
    )


class Encoder:
    """Notes symbols in the order in which ``Decoder`` pops them."""

    def __init__(self) -> None:
        self._intervals: list[tuple[int, int]] = []

    def symbol(self, start: int, freq: int) -> None:
        self._intervals.append((start, freq))

    def field(self, width: int, value: int) -> None:
        """``width`` bits, all values alike; of no bits nothing."""
        if width:
            self.symbol(value << 12 - width, 4096 >> width)

    def bit(self, freq: int, value: int) -> None:
        """A one has ``freq`` of the slots; what is certain is nothing."""
        if 0 < freq < 4096:
            self.symbol(*((0, freq) if value else (freq, 4096 - freq)))

    def stream(self, payload: int = 0) -> bytes:
        return encode(self._intervals, payload)


class Decoder:
    """Pops the symbols of a stream. Raises ValueError where no encoder wrote it."""

    def __init__(self, stream: bytes) -> None:
        self._state = int.from_bytes(stream[:4], "little")
        self._words = [stream[i : i + 2] for i in range(4, len(stream), 2)]
        if len(stream) < 4 or self._state < INITIAL:
            raise ValueError("the stream does not begin with a state")

    @property
    def slot(self) -> int:
        return self._state % TOTAL

    def pop(self, start: int, freq: int) -> None:
        """Leave behind the symbol of this interval, in which ``slot`` lies."""
        self._state = freq * (self._state // TOTAL) + self.slot - start
        if self._state < INITIAL:
            if not self._words or len(self._words[0]) < 2:
                raise ValueError("the stream ends before its symbols do")
            self._state = self._state << 16 | int.from_bytes(self._words.pop(0), "little")

    def field(self, width: int) -> int:
        value = self.slot >> 12 - width
        if width:
            self.pop(value << 12 - width, 4096 >> width)
        return value

    def bit(self, freq: int) -> int:
        if freq in (0, 4096):
            return freq // 4096
        value = int(self.slot < freq)
        self.pop(*((0, freq) if value else (freq, 4096 - freq)))
        return value

    def close(self) -> int:
        """The payload, once all symbols are popped."""
        if self._words or not INITIAL <= self._state < 2 * INITIAL:
            raise ValueError("the stream does not end where its symbols do")
        return self._state - INITIAL
