"""The calibrated codec's kernel: a trellis quantizer and rANS, all in integers.

``reference`` says what the bytes are, ``layout`` where they stand and what the tables hold. All
devices write the same bytes and read the same rows.
"""

from collections.abc import Sequence

import torch

from sliceserve.kernels.calibrated import cpu
from sliceserve.kernels.calibrated.layout import (
    ESCAPE,
    FRACTION_BITS,
    MAX_HIDDEN_SIZE,
    MAX_INPUT,
    MAX_LAMBDA,
    NOMINAL,
    NUM_CLASSES,
    NUM_DIRECT,
    NUM_POINTS,
    NUM_SCALES,
    NUM_SYMBOLS,
    RECIPROCALS,
    SIGMAS,
    SYMBOLS,
    CalibratedError,
    Tables,
)

__all__ = [
    "ESCAPE",
    "FRACTION_BITS",
    "MAX_HIDDEN_SIZE",
    "MAX_INPUT",
    "MAX_LAMBDA",
    "NOMINAL",
    "NUM_CLASSES",
    "NUM_DIRECT",
    "NUM_POINTS",
    "NUM_SCALES",
    "NUM_SYMBOLS",
    "RECIPROCALS",
    "SIGMAS",
    "SYMBOLS",
    "CalibratedError",
    "Tables",
    "check",
    "decode",
    "encode",
    "quantize",
]


def quantize(
    y64: torch.Tensor, points: torch.Tensor, tables: Tables, lambda_: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What ``encode`` decides, for calibration: levels (T, d) int16, quantizers (T, d) uint8 and
    classes (T,) uint8. On the CPU only; arguments and errors are those of ``encode``."""
    return cpu.quantize(y64, points, tables, lambda_)


def encode(
    y64: torch.Tensor,
    points: torch.Tensor,
    payloads: torch.Tensor,
    tables: Tables,
    lambda_: int,
    payload_bytes: int,
) -> tuple[list[bytes], torch.Tensor]:
    """One packet a row, and the rows as a decoder will see them.

    ``y64`` (T, d) int32 is in 1/64 of the row's step, at most ``MAX_INPUT`` in magnitude;
    ``points`` (T,) uint8 are below 32; ``payloads`` (T,) int32 fit ``payload_bytes`` = 0, 2 or 3
    bytes; ``lambda_``, up to ``MAX_LAMBDA``, is in 1/4096 step² per bit. Returns the packets and
    (T, d) int32 on the device of ``y64``. Raises CalibratedError for the first row out of range.
    """
    if y64.is_cuda:
        # Triton is there on machines with a GPU only.
        from sliceserve.kernels.calibrated import triton

        return triton.encode(y64, points, payloads, tables, lambda_, payload_bytes)
    return cpu.encode(y64, points, payloads, tables, lambda_, payload_bytes)


def decode(
    packets: Sequence[bytes],
    tables: Tables,
    payload_bytes: int,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows (T, d) int32 in 1/64 of their steps, points (T,) uint8 and payloads (T,) int32.

    All on ``device``. Raises CalibratedError for the first packet that no encoder wrote.
    """
    if torch.device(device).type == "cuda":
        from sliceserve.kernels.calibrated import triton

        return triton.decode(packets, tables, payload_bytes, device)
    return cpu.decode(packets, tables, payload_bytes)


def check(packets: Sequence[bytes], tables: Tables, payload_bytes: int) -> None:
    """Raise CalibratedError unless ``decode`` will accept the packets."""
    cpu.decode(packets, tables, payload_bytes)
