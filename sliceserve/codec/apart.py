"""Packets of tokens that no step of the calibrated codec suits: sent apart, nearly exact."""

import torch

from sliceserve.codec.int8 import Int8Codec
from sliceserve.kernels.calibrated import ESCAPE

_MARK = bytes((ESCAPE,))
_TOKEN_BYTES = 3


class Apart:
    """``ESCAPE``, three bytes of token id if the profile predicts, a packet of ``Int8Codec``."""

    def __init__(self, hidden_size: int, has_token_ids: bool) -> None:
        self._codec = Int8Codec(hidden_size)
        self._token_bytes = _TOKEN_BYTES if has_token_ids else 0

    def encode(self, row: torch.Tensor, token_id: int) -> bytes:
        """(1, d) float32, finite."""
        token = token_id.to_bytes(self._token_bytes, "little") if self._token_bytes else b""
        return _MARK + token + self._codec.encode(row)[0]

    def decode(self, packet: bytes, out: torch.Tensor) -> None:
        """Write to ``out`` (1, d). Raises CodecError."""
        self._codec.decode([self._vector(packet)], out)

    def check(self, packet: bytes) -> None:
        """Raise CodecError unless ``decode`` will accept the packet."""
        self._codec.check(self._vector(packet))

    def token_id(self, packet: bytes) -> int:
        return int.from_bytes(packet[1 : 1 + self._token_bytes], "little")

    def _vector(self, packet: bytes) -> bytes:
        return packet[1 + self._token_bytes :]


def is_apart(packet: bytes) -> bool:
    return packet[:1] == _MARK
