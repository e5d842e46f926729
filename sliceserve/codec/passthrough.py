"""Hidden states as they are, in one floating-point format: what other codecs are measured by."""

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


class PassthroughCodec:
    """d little-endian float32, float16 or bfloat16 values, rounded to nearest, ties to even.

    A row with a value that is not finite in that format, as 70000 in float16, is refused on both
    sides: clamping it would change the model's answer without a word.
    """

    def __init__(self, dtype: torch.dtype, hidden_size: int) -> None:
        self._dtype = dtype
        self._name = str(dtype).removeprefix("torch.")
        self._hidden_size = hidden_size

    @property
    def wire_id(self) -> str:
        return f"{self._name}/1"

    @property
    def predicts(self) -> bool:
        return False

    @property
    def hidden_size(self) -> int:
        return self._hidden_size

    def encode(self, hidden: torch.Tensor, runs: Sequence[Run] = ()) -> list[bytes]:
        expect_rows(hidden, self._hidden_size)
        rows = hidden.to(torch.float32).to(self._dtype).contiguous()
        self._refuse_infinite(rows)
        return to_packets(rows.view(torch.uint8))

    def decode(self, packets: Sequence[bytes], out: torch.Tensor, runs: Sequence[Run] = ()) -> None:
        expect_one_row_each(packets, out, self._hidden_size)
        out.copy_(self._checked(packets))

    def check(self, packet: bytes) -> None:
        self._checked([packet])

    def _checked(self, packets: Sequence[bytes]) -> torch.Tensor:
        rows = from_packets(packets, self._hidden_size * self._dtype.itemsize).view(self._dtype)
        self._refuse_infinite(rows)
        return rows

    def _refuse_infinite(self, rows: torch.Tensor) -> None:
        refuse_rows(
            ~rows.isfinite().all(dim=1),
            f"a value is not finite in {self._name}; float32 and bfloat16 hold the widest range",
        )
