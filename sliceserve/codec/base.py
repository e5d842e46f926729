"""The contract of every codec."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch


class CodecError(ValueError):
    """A packet that no encoder of this codec wrote. ``index`` is its place in the batch."""

    def __init__(self, message: str, index: int = 0) -> None:
        super().__init__(message)
        self.index = index


def max_packet_bytes(hidden_size: int) -> int:
    """No packet of any codec is longer: a float32 an element, and what codecs put around them."""
    return 4 * hidden_size + 256


@dataclass(slots=True)
class Run:
    """Rows of consecutive tokens of one request: what a predictive codec knows beside a vector.

    ``token_ids`` (num_rows of them) are the encoder's; a decoder has them from the packets.
    ``previous`` is the state that the first row is predicted from, (hidden_size,) float32: the
    decoded one of the token before, None where the sequence begins. A codec that predicts from it
    calls ``follow`` for all rows in turn, in ``encode`` and in ``decode``, so that
    ``previous`` becomes that of the last row, and ``states`` those of the rows in ``marks``.
    """

    num_rows: int
    token_ids: Sequence[int] = ()
    previous: torch.Tensor | None = None
    marks: range = range(0)
    states: dict[int, torch.Tensor | None] = field(default_factory=dict)
    _num_followed: int = 0

    def follow(self, num_rows: int, state_of: Callable[[int], torch.Tensor | None]) -> None:
        """The next ``num_rows`` rows have left ``state_of(0)``, ``state_of(1)``, ...: tensors that
        are nobody else's, or None where the row behind is to be predicted as if it were the first.
        Asks for those that are kept, and no others."""
        if num_rows == 0:
            return
        last = num_rows - 1
        self.previous = state_of(last)
        for i in range(num_rows):
            if (row := self._num_followed + i) in self.marks:
                self.states[row] = self.previous if i == last else state_of(i)
        self._num_followed += num_rows


class Codec(Protocol):
    """Hidden states of single tokens to packets and back.

    A packet is a pure function of one token's vector, the codec's settings and, where the codec
    predicts, the token's run up to it; never of its neighbours in the batch. Instances hold no
    per-request state and may be shared by threads.
    """

    @property
    def wire_id(self) -> str:
        """Name and format version, as "slicer/1". Two sides that agree on it understand each
        other's packets; settings of the encoder are not part of it."""
        ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def predicts(self) -> bool:
        """Whether ``encode`` and ``decode`` need the rows' ``runs``."""
        ...

    def encode(self, hidden: torch.Tensor, runs: Sequence[Run] = ()) -> list[bytes]:
        """(num_tokens, hidden_size) of any floating dtype, on any device → one packet a row.

        Values are read as float32. Raises CodecError for a row that is not finite.
        """
        ...

    def decode(self, packets: Sequence[bytes], out: torch.Tensor, runs: Sequence[Run] = ()) -> None:
        """Write packets to ``out`` (len(packets), hidden_size), any floating dtype, any device.

        Raises CodecError naming the first bad packet; ``out`` and ``runs`` are then undefined.
        """
        ...

    def check(self, packet: bytes) -> None:
        """Raise CodecError unless ``decode`` will accept the packet. Bounded time and memory."""
        ...
