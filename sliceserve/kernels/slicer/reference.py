"""SLICER in plain NumPy, a row at a time: what the bytes are by definition.

Each row passes three stages. **ATKF** keeps the K elements of highest score, x or λ·|x| for
negative x. **MS** cuts the survivors, sorted by magnitude, into M blocks of equal cardinality.
**ABQ** codes each block on a uniform grid over [lo, hi], its range of magnitudes rounded outward
to bfloat16, in as few bits as keep Σ(v − v̂)² ≤ δ·Σv².

ABQ is integer arithmetic. A block's magnitudes become integers V, at 24 bits for the largest: with
e the exponent of hi, V = floor(v · 2^(23−e)). LO and HI are lo and hi so scaled, R = HI − LO, and

    code of b bits   c = min(floor((V − LO) · 2^b / R), 2^b − 1)
    its value        V̂ = LO + floor(R · (2c + 1) / 2^(b+1)), the middle of a cell

so the code of b bits is the code of b_max bits shifted right, whatever the rounding. Only λ·|x| is
a floating-point operation: one product, whose bits alone are used.
"""

from collections.abc import Sequence

import numpy as np
import torch

from sliceserve.kernels.slicer.layout import (
    DISTORTION_SHIFT,
    MAX_BFLOAT16,
    EncoderSettings,
    SlicerError,
    block_end,
)
from sliceserve.kernels.slicer.reference_layouts import Fields

_MIN_NORMAL = np.float32(2.0**-126)


def encode(hidden: torch.Tensor, settings: EncoderSettings) -> list[bytes]:
    rows = hidden.float().numpy()
    for t, row in enumerate(rows):
        if not np.isfinite(row).all():
            raise SlicerError("a value is not finite", t)
    return [_encode_row(row, settings) for row in rows]


def decode(packets: Sequence[bytes], hidden_size: int) -> torch.Tensor:
    """Valid packets to (len(packets), hidden_size) float32."""
    rows = torch.zeros(len(packets), hidden_size)
    for row, packet in zip(rows, packets, strict=True):
        row.copy_(torch.from_numpy(_decode_row(packet, hidden_size)))
    return rows


def _encode_row(row: np.ndarray, settings: EncoderSettings) -> bytes:
    num_kept, num_blocks = settings.num_kept, settings.num_blocks
    magnitude = _flush(np.abs(row))  # (d,)
    with np.errstate(over="ignore"):
        weighted = _flush(magnitude * np.float32(settings.asymmetry))
    score = np.where(row < 0, weighted, magnitude)
    kept = np.sort(np.argsort(-score, kind="stable")[:num_kept])  # (K,)

    by_magnitude = np.argsort(-magnitude[kept], kind="stable")
    block = np.zeros(num_kept, np.int64)
    code = np.zeros(num_kept, np.int64)
    blocks = []
    start = 0
    for j in range(num_blocks):
        end = block_end(j, num_kept, num_blocks)
        members = by_magnitude[start:end]
        lo, hi, width, codes = _code_block(magnitude[kept[members]], settings)
        blocks.append((width, lo, hi))
        block[members], code[members] = j, codes
        start = end

    negative = (row[kept] < 0) & (magnitude[kept] > 0)
    return Fields(
        blocks, kept.tolist(), block.tolist(), negative.astype(int).tolist(), code.tolist()
    ).shortest(row.size)


def _code_block(
    magnitude: np.ndarray, settings: EncoderSettings
) -> tuple[int, int, int, np.ndarray]:
    """A block's lo and hi as bfloat16 bits, its width, and the codes of its members."""
    if magnitude.size == 0:
        return 0, 0, 0, np.zeros(0, np.int64)
    lo = int(magnitude.min().view(np.uint32)) >> 16
    hi = min((int(magnitude.max().view(np.uint32)) + 0xFFFF) >> 16, MAX_BFLOAT16)
    low, span, exponent = _grid(lo, hi)
    value = _fixed(magnitude, exponent)
    largest = (1 << settings.max_bits) - 1
    finest = np.minimum((value - low << settings.max_bits) // max(span, 1), largest)
    budget = (int((value * value).sum()) * settings.distortion) >> DISTORTION_SHIFT
    for b in range(settings.max_bits):
        code = finest >> (settings.max_bits - b)
        error = value - _level(code, b, low, span)
        if int((error * error).sum()) <= budget:
            return lo, hi, b, code
    return lo, hi, settings.max_bits, finest


def _decode_row(packet: bytes, hidden_size: int) -> np.ndarray:
    fields = Fields.read(packet, hidden_size)
    row = np.zeros(hidden_size, np.float32)
    survivors = zip(fields.kept, fields.block, fields.negative, fields.code, strict=True)
    for index, block, negative, code in survivors:
        width, lo, hi = fields.blocks[block]
        low, span, exponent = _grid(lo, hi)
        level = _level(code, width, low, span)
        value = _flush(np.float32(np.ldexp(float(level), exponent - 23)))
        row[index] = -value if negative else value
    return row


def _flush(magnitude: np.ndarray) -> np.ndarray:
    return np.where(magnitude < _MIN_NORMAL, np.float32(0), magnitude)


def _grid(lo: int, hi: int) -> tuple[int, int, int]:
    """LO, R and e of a block whose range is given as bfloat16 bits."""
    low, high = (np.uint32(bits << 16).view(np.float32) for bits in (lo, hi))
    exponent = max(int(np.frexp(high)[1]) - 1, -127) if high > 0 else -127
    low_fixed = int(_fixed(low, exponent))
    return low_fixed, int(_fixed(high, exponent)) - low_fixed, exponent


def _fixed(magnitude: np.ndarray, exponent: int) -> np.ndarray:
    return np.floor(np.ldexp(np.float64(magnitude), 23 - exponent)).astype(np.int64)


def _level(code: np.ndarray | int, width: int, low: int, span: int) -> np.ndarray | int:
    return low + (span * (2 * code + 1) >> (width + 1))
