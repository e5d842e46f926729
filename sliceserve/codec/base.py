"""The contract of every codec."""

from collections.abc import Sequence
from typing import Protocol

import torch


class CodecError(ValueError):
    """A packet that no encoder of this codec wrote. ``index`` is its place in the batch."""

    def __init__(self, message: str, index: int = 0) -> None:
        super().__init__(message)
        self.index = index


class Codec(Protocol):
    """Hidden states of single tokens to packets and back.

    A packet is a pure function of one token's vector and the codec's settings, never of its
    neighbours in the batch. Instances hold no per-request state and may be shared by threads.
    """

    @property
    def wire_id(self) -> str:
        """Name and format version, as "slicer/1". Two sides that agree on it understand each
        other's packets; settings of the encoder are not part of it."""
        ...

    @property
    def hidden_size(self) -> int: ...

    def encode(self, hidden: torch.Tensor) -> list[bytes]:
        """(num_tokens, hidden_size) of any floating dtype, on any device → one packet a row.

        Values are read as float32. Raises CodecError for a row that is not finite.
        """
        ...

    def decode(self, packets: Sequence[bytes], out: torch.Tensor) -> None:
        """Write packets to ``out`` (len(packets), hidden_size), any floating dtype, any device.

        Raises CodecError naming the first bad packet; ``out`` is then undefined.
        """
        ...

    def check(self, packet: bytes) -> None:
        """Raise CodecError unless ``decode`` will accept the packet. Bounded time and memory."""
        ...
