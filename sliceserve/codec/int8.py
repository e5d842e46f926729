"""Eight bits per element, symmetric, a scale for every 64 elements.

Every step is exact or rounded as IEEE demands, so all devices write and read the same: a scale of
8 significant bits times a code of 8 is exact in float32.
"""

from collections.abc import Sequence

import torch

from sliceserve.codec.base import Run
from sliceserve.codec.rows import (
    expect_one_row_each,
    expect_rows,
    from_packets,
    refuse_rows,
    to_packets,
)

GROUP_SIZE = 64
_MAX_CODE = 127
_MIN_SCALE = 0x0080
# The largest bfloat16, as bits, that 127 multiplies without overflow of float32.
_MAX_SCALE = 0x7C01


class Int8Codec:
    """ceil(d / 64) scales in bfloat16, then d codes in int8; little-endian.

    A group's scale is its largest magnitude / 127, rounded up; its values are code · scale. Groups
    whose scale would be below the smallest normal float32 become zeros.
    """

    def __init__(self, hidden_size: int) -> None:
        self._hidden_size = hidden_size
        self._num_groups = -(-hidden_size // GROUP_SIZE)

    @property
    def wire_id(self) -> str:
        return "int8/1"

    @property
    def predicts(self) -> bool:
        return False

    @property
    def hidden_size(self) -> int:
        return self._hidden_size

    def encode(self, hidden: torch.Tensor, runs: Sequence[Run] = ()) -> list[bytes]:
        expect_rows(hidden, self._hidden_size)
        x = hidden.to(torch.float32)
        refuse_rows(~x.isfinite().all(dim=1), "a value is not finite")
        groups = self._grouped(x)  # (T, groups, 64)
        exact = (groups.abs().amax(dim=2) / _MAX_CODE).view(torch.int32)
        bits = ((exact + 0xFFFF) >> 16).clamp(max=_MAX_SCALE)  # (T, groups)
        bits = torch.where(bits < _MIN_SCALE, 0, bits)
        scales = (bits << 16).view(torch.float32)
        divisor = torch.where(bits == 0, torch.inf, scales)
        codes = (groups / divisor[:, :, None]).round().clamp(-_MAX_CODE, _MAX_CODE)
        codes = codes.to(torch.int8).flatten(1)[:, : self._hidden_size].contiguous()
        packets = [bits.to(torch.int16).view(torch.uint8), codes.view(torch.uint8)]
        return to_packets(torch.cat(packets, dim=1))

    def decode(self, packets: Sequence[bytes], out: torch.Tensor, runs: Sequence[Run] = ()) -> None:
        expect_one_row_each(packets, out, self._hidden_size)
        packed = self._checked(packets).to(out.device)
        bits, codes = self._fields(packed)
        scales = (bits.to(torch.int32) << 16).view(torch.float32)
        values = self._grouped(codes.to(torch.float32)) * scales[:, :, None]
        out.copy_(values.flatten(1)[:, : self._hidden_size])

    def check(self, packet: bytes) -> None:
        self._checked([packet])

    def _checked(self, packets: Sequence[bytes]) -> torch.Tensor:
        packed = from_packets(packets, 2 * self._num_groups + self._hidden_size)
        bits, codes = self._fields(packed)
        is_scale = (bits == 0) | ((bits >= _MIN_SCALE) & (bits <= _MAX_SCALE))
        refuse_rows(~is_scale.all(dim=1), "a scale is not a positive number that fits float32")
        refuse_rows((codes < -_MAX_CODE).any(dim=1), "a code is outside -127 to 127")
        return packed

    def _fields(self, packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Packets as (T, groups) int16 scale bits and (T, d) int8 codes."""
        split = 2 * self._num_groups
        # Cloned, because a view of wider elements needs its strides to be even, too.
        bits = packed[:, :split].clone(memory_format=torch.contiguous_format).view(torch.int16)
        return bits, packed[:, split:].contiguous().view(torch.int8)

    def _grouped(self, rows: torch.Tensor) -> torch.Tensor:
        """(T, d) → (T, groups, 64), the last group filled up with zeros."""
        missing = self._num_groups * GROUP_SIZE - self._hidden_size
        padded = torch.nn.functional.pad(rows, (0, missing))
        return padded.view(rows.shape[0], self._num_groups, GROUP_SIZE)
