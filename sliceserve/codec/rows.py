"""What the codecs share: rows of hidden states, and packets of one fixed length."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch

from sliceserve.codec.base import CodecError


class KernelError(Protocol):
    """What kernels raise for a row or a packet; ``index`` is its place among those they had."""

    index: int


@contextmanager
def codec_errors(kind: type[KernelError]) -> Iterator[None]:
    """A kernel's errors as CodecError."""
    try:
        yield
    except kind as error:  # type: ignore[misc]
        raise CodecError(str(error), error.index) from error


def expect_rows(rows: torch.Tensor, hidden_size: int) -> None:
    """Raise ValueError unless ``rows`` is (T, hidden_size) of a floating dtype."""
    if rows.dim() != 2 or rows.shape[1] != hidden_size or not rows.is_floating_point():
        raise ValueError(
            f"hidden states must be (tokens, {hidden_size}) of a floating dtype, "
            f"got {tuple(rows.shape)} of {rows.dtype}"
        )


def expect_one_row_each(packets: Sequence[bytes], out: torch.Tensor, hidden_size: int) -> None:
    expect_rows(out, hidden_size)
    if len(packets) != out.shape[0]:
        raise ValueError(f"{len(packets)} packets do not fit the {out.shape[0]} rows of out")


def to_packets(rows: torch.Tensor) -> list[bytes]:
    """(T, length) uint8 on any device → T packets."""
    return [row.tobytes() for row in rows.cpu().numpy()]


def from_packets(packets: Sequence[bytes], length: int) -> torch.Tensor:
    """Packets → (T, length) uint8 on the CPU. Raises CodecError for one of another length."""
    for index, packet in enumerate(packets):
        if len(packet) != length:
            raise CodecError(f"a packet of {len(packet)} bytes, expected {length}", index)
    joined = bytearray().join(packets)
    if not joined:
        return torch.empty(len(packets), length, dtype=torch.uint8)
    return torch.frombuffer(joined, dtype=torch.uint8).view(len(packets), length)


def refuse_rows(is_bad: torch.Tensor, message: str) -> None:
    """Raise CodecError with the first row that ``is_bad``, (T,) bool, points at."""
    if bool(is_bad.any()):
        raise CodecError(message, int(is_bad.nonzero()[0]))


def refuse_not_finite(rows: torch.Tensor, message: str) -> None:
    """Raise CodecError with the first row of (T, d) that is not finite."""
    # A sum takes a fraction of the time of a look at each value. It may overflow where none is bad.
    if not math.isfinite(rows.sum().item()):
        refuse_rows(~rows.isfinite().all(dim=1), message)
