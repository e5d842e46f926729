"""The baseline of arXiv 2511.11664: asymmetric integer grid, sparse matrix, rANS.

``layout`` says where the bytes stand, ``reference`` what they are.
"""

from collections.abc import Sequence

import torch

from sliceserve.kernels.grid_rans import cpu
from sliceserve.kernels.grid_rans.layout import MAX_HIDDEN_SIZE, GridError

__all__ = ["MAX_HIDDEN_SIZE", "GridError", "check", "decode", "encode"]


def encode(hidden: torch.Tensor, num_levels: int) -> list[bytes]:
    """(T, d) of any floating dtype on any device → one packet a row, read as float32.

    Computed on the CPU. Raises GridError for the first row that is not finite.
    """
    return cpu.encode(hidden.to("cpu", torch.float32), num_levels)


def decode(packets: Sequence[bytes], out: torch.Tensor) -> None:
    """Write packets to ``out`` (len(packets), d), any floating dtype, any device.

    Raises GridError for the first packet that no encoder wrote, before ``out`` is touched.
    """
    out.copy_(cpu.decode(packets, out.shape[1]))


def check(packets: Sequence[bytes], hidden_size: int) -> None:
    """Raise GridError unless ``decode`` will accept the packets."""
    cpu.decode(packets, hidden_size)
