"""The contract of every codec."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


class CodecError(ValueError):
    """A packet that no encoder of this codec wrote. ``index`` is its place in the batch."""

    def __init__(self, message: str, index: int = 0) -> None:
        super().__init__(message)
        self.index = index


@dataclass(slots=True)
class Run:
    """Rows of consecutive tokens of one request: what a predictive codec knows beside a vector.

    ``token_ids`` (num_rows of them) are the encoder's; a decoder has them from the packets.
    ``previous`` is the decoded state of the token before the first row, (hidden_size,) float32,
    None where the sequence begins. ``encode`` and ``decode`` of a codec that predicts from it
    leave there the state of the last row; others leave it alone.
    """

    num_rows: int
    token_ids: Sequence[int] = ()
    previous: torch.Tensor | None = None


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
