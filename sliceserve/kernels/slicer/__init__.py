"""SLICER (arXiv 2511.11608): asymmetric top-K filtering, magnitude splitting, adaptive bits.

``reference`` says what the bytes are, ``layout`` where they stand. ``cpu`` and ``triton`` turn rows
into raw packets and back; ``compress`` and ``expand`` entropy-code those, on the CPU.
"""

from collections.abc import Sequence

import torch

from sliceserve.kernels.slicer import cpu
from sliceserve.kernels.slicer.layout import (
    DISTORTION_SHIFT,
    MAX_HIDDEN_SIZE,
    EncoderSettings,
    SlicerError,
)

__all__ = [
    "DISTORTION_SHIFT",
    "MAX_HIDDEN_SIZE",
    "EncoderSettings",
    "SlicerError",
    "check",
    "decode",
    "encode",
]


def encode(hidden: torch.Tensor, settings: EncoderSettings) -> list[bytes]:
    """(T, d) of any floating dtype → one packet a row, read as float32.

    Equal bytes on every device. Raises SlicerError for the first row that is not finite.
    """
    if hidden.is_cuda:
        # Triton is there on machines with a GPU only.
        from sliceserve.kernels.slicer import triton

        return triton.encode(hidden, settings)
    return cpu.encode(hidden.cpu(), settings)


def decode(packets: Sequence[bytes], out: torch.Tensor) -> None:
    """Write packets to ``out`` (len(packets), d), any floating dtype.

    Values are equal in float32 on every device, then rounded to ``out``'s dtype. Raises SlicerError
    for the first packet that no encoder wrote, before ``out`` is touched.
    """
    if out.is_cuda:
        from sliceserve.kernels.slicer import triton

        triton.decode(packets, out)
    else:
        cpu.decode(packets, out)


def check(packets: Sequence[bytes], hidden_size: int) -> None:
    """Raise SlicerError unless ``decode`` will accept the packets."""
    cpu.checked(packets, hidden_size)
