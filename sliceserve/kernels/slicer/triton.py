"""SLICER in Triton, a program per token; byte for byte ``reference``.

The kernels write and read the raw layout; ``compress`` and ``expand`` turn it into what goes over
the wire and back, on the host, where packets must pass anyway.

Exact on any GPU because everything is integer arithmetic on float bits, save one product, λ·|x|,
which IEEE rounds alike everywhere and which no sum follows that could be contracted with it.
Integer sums do not depend on their order. Packets are written with atomic ORs of disjoint bits,
so the order of those does not matter either.
"""

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from sliceserve.kernels.slicer import layout
from sliceserve.kernels.slicer.compress import shortest
from sliceserve.kernels.slicer.cpu import checked
from sliceserve.kernels.slicer.layout import EncoderSettings, SlicerError

_FORMAT_VERSION = tl.constexpr(layout.FORMAT_VERSION)
_HEADER_BITS = tl.constexpr(layout.HEADER_BITS)
_BLOCK_BITS = tl.constexpr(layout.BLOCK_BITS)
_DISTORTION_SHIFT = tl.constexpr(layout.DISTORTION_SHIFT)
_FRACTION = tl.constexpr((1 << layout.DISTORTION_SHIFT) - 1)
_MIN_NORMAL = tl.constexpr(layout.MIN_NORMAL)
_INFINITY = tl.constexpr(layout.INFINITY)
_MAX_BFLOAT16 = tl.constexpr(layout.MAX_BFLOAT16)


def encode(hidden: torch.Tensor, settings: EncoderSettings) -> list[bytes]:
    num_rows, hidden_size = hidden.shape
    if num_rows == 0:
        return []
    if hidden.stride(1) != 1:
        hidden = hidden.contiguous()
    # The length stands before the packet, and a field may reach into the word after the last.
    num_words = layout.max_packet_bits(hidden_size, settings) // 32 + 3
    words = torch.zeros(num_rows, num_words, dtype=torch.int32, device=hidden.device)
    block = triton.next_power_of_2(hidden_size)
    _encode_kernel[(num_rows,)](
        hidden,
        words,
        hidden.stride(0),
        num_words,
        hidden_size,
        layout.index_bits(hidden_size),
        settings.num_kept,
        settings.num_blocks.bit_length() - 1,
        settings.asymmetry,
        settings.distortion,
        settings.max_bits,
        BLOCK=block,
        num_warps=_num_warps(block),
    )
    rows = words.cpu().numpy()
    lengths = rows[:, 0].astype(np.int64)
    if lengths.min() < 0:
        raise SlicerError("a value is not finite", int(lengths.argmin()))
    return shortest(rows[:, 1:].view(np.uint8), lengths, hidden_size)


def decode(packets: Sequence[bytes], out: torch.Tensor) -> None:
    num_rows, hidden_size = out.shape
    data, starts = checked(packets, hidden_size)
    if num_rows == 0:
        return
    rows = (
        out if out.stride(1) == 1 else torch.empty_like(out, memory_format=torch.contiguous_format)
    )
    uploaded = torch.from_numpy(np.concatenate([starts.view(np.uint8), data])).to(out.device)
    block = triton.next_power_of_2(hidden_size)
    _decode_kernel[(num_rows,)](
        uploaded[starts.nbytes :],
        uploaded[: starts.nbytes].view(torch.int64),
        rows,
        rows.stride(0),
        hidden_size,
        layout.index_bits(hidden_size),
        BLOCK=block,
        num_warps=_num_warps(block),
    )
    if rows is not out:
        out.copy_(rows)


def _num_warps(block: int) -> int:
    return min(16, max(1, block // 256))


@triton.jit
def _largest(key, count):
    """Mask of the ``count`` largest of int32 keys, ties to the lowest index; -1 is never chosen."""
    threshold = 0
    for i in range(31):
        candidate = threshold | (1 << (30 - i))
        at_least = tl.sum((key >= candidate).to(tl.int32))
        threshold = tl.where(at_least >= count, candidate, threshold)
    above = key > threshold
    tie = (key == threshold).to(tl.int32)
    room = count - tl.sum(above.to(tl.int32))
    return above | ((tie > 0) & (tl.cumsum(tie) <= room))


@triton.jit
def _fixed(magnitude, exponent):
    """Float bits as an integer that has 24 bits at ``exponent``, rounded down."""
    mantissa = (magnitude & 0x7FFFFF) | 0x800000
    shift = tl.minimum(exponent - (magnitude >> 23), 31)
    return tl.where(magnitude >= _MIN_NORMAL, mantissa >> shift, 0)


@triton.jit
def _level(code, width, low, span):
    return low + ((span.to(tl.int64) * (2 * code + 1)) >> (width + 1).to(tl.int64)).to(tl.int32)


@triton.jit
def _squared_error(value, code, width, low, span, member):
    error = tl.where(member, value - _level(code, width, low, span), 0).to(tl.int64)
    return tl.sum(error * error)


@triton.jit
def _put(p_words, position, field):
    """Write fields of at most 16 bits into zeroed bits. A zero is written by doing nothing."""
    wide = field.to(tl.int64) << (position & 31).to(tl.int64)
    low = wide.to(tl.int32)
    high = (wide >> 32).to(tl.int32)
    word = position >> 5
    tl.atomic_or(p_words + word, low, mask=low != 0)
    tl.atomic_or(p_words + word + 1, high, mask=high != 0)


@triton.jit
def _get(p_data, position, width):
    """The field of at most 16 bits at a bit of a packet."""
    p_byte = p_data + (position >> 3)
    window = tl.load(p_byte).to(tl.int32)
    window |= tl.load(p_byte + 1).to(tl.int32) << 8
    window |= tl.load(p_byte + 2).to(tl.int32) << 16
    return (window >> (position & 7)) & ((1 << width) - 1)


@triton.jit
def _encode_kernel(
    p_hidden,
    p_words,
    stride_hidden,
    stride_words,
    hidden_size,
    index_bits,
    num_kept,
    log2_blocks,
    asymmetry,
    distortion,
    max_bits,
    BLOCK: tl.constexpr,
):
    i_t = tl.program_id(0).to(tl.int64)
    p_length = p_words + i_t * stride_words
    p_packet = p_length + 1
    lane = tl.arange(0, BLOCK)
    is_element = lane < hidden_size
    x = tl.load(p_hidden + i_t * stride_hidden + lane, mask=is_element, other=0).to(tl.float32)
    magnitude = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    is_finite = tl.max(magnitude) < _INFINITY
    # A row that is not finite goes on as zeros, so that nothing below can leave its bounds.
    magnitude = tl.where(is_finite & (magnitude >= _MIN_NORMAL), magnitude, 0)
    negative = (x < 0) & (magnitude > 0)

    weighted = (magnitude.to(tl.float32, bitcast=True) * asymmetry).to(tl.int32, bitcast=True)
    weighted = tl.where(weighted >= _MIN_NORMAL, weighted, 0)
    score = tl.where(negative, weighted, magnitude)
    keep = _largest(tl.where(is_element, score, -1), num_kept)

    num_blocks = 1 << log2_blocks
    each = num_kept // num_blocks
    rest = num_kept % num_blocks
    block = tl.zeros([BLOCK], tl.int32)
    for j in range(1, num_blocks):
        first = _largest(tl.where(keep, magnitude, -1), j * each + tl.minimum(j, rest))
        block += (keep & ~first).to(tl.int32)

    code = tl.zeros([BLOCK], tl.int32)
    width = tl.zeros([BLOCK], tl.int32)
    position = tl.full([], _HEADER_BITS, tl.int32)
    for j in range(num_blocks):
        member = keep & (block == j)
        hi = tl.max(tl.where(member, magnitude, 0))
        # An empty block's range is zero.
        lo = tl.minimum(tl.min(tl.where(member, magnitude, _INFINITY)), hi) >> 16
        hi = tl.minimum((hi + 0xFFFF) >> 16, _MAX_BFLOAT16)
        exponent = hi >> 7
        low = _fixed(lo << 16, exponent)
        span = _fixed(hi << 16, exponent) - low
        value = _fixed(tl.where(member, magnitude, 0), exponent)

        offset = tl.where(member, value - low, 0).to(tl.int64)
        finest = ((offset << max_bits) // tl.maximum(span, 1).to(tl.int64)).to(tl.int32)
        finest = tl.minimum(finest, (1 << max_bits) - 1)
        square = value.to(tl.int64) * value
        energy = tl.sum(square)
        budget = (energy >> _DISTORTION_SHIFT) * distortion
        budget += ((energy & _FRACTION) * distortion) >> _DISTORTION_SHIFT

        b = tl.full([], 0, tl.int32)
        error = _squared_error(value, finest >> max_bits, b, low, span, member)
        while (b < max_bits) & (error > budget):
            b += 1
            error = _squared_error(value, finest >> (max_bits - b), b, low, span, member)
        code = tl.where(member, finest >> (max_bits - b), code)
        width = tl.where(member, b, width)
        _put(p_packet, position, b)
        _put(p_packet, position + 4, lo)
        _put(p_packet, position + 20, hi)
        position += _BLOCK_BITS

    rank = tl.cumsum(keep.to(tl.int32)) - 1
    if num_kept * index_bits < hidden_size:
        _put(p_packet, position + rank * index_bits, tl.where(keep, lane, 0))
        position += num_kept * index_bits
    else:
        _put(p_packet, position + lane, keep.to(tl.int32))
        position += hidden_size
    tag_bits = 1 + log2_blocks
    tag = (block << 1) | negative.to(tl.int32)
    _put(p_packet, position + rank * tag_bits, tl.where(keep, tag, 0))
    position += num_kept * tag_bits
    _put(p_packet, position + tl.cumsum(width) - width, code)
    position += tl.sum(width)

    header = (num_kept << 8) | (_FORMAT_VERSION << 4) | log2_blocks
    tl.atomic_or(p_packet, header)
    tl.store(p_length, tl.where(is_finite, (position + 7) >> 3, -1))


@triton.jit
def _decode_kernel(
    p_data, p_starts, p_out, stride_out, hidden_size, index_bits, BLOCK: tl.constexpr
):
    i_t = tl.program_id(0).to(tl.int64)
    p_packet = p_data + tl.load(p_starts + i_t)
    lane = tl.arange(0, BLOCK)
    is_element = lane < hidden_size
    log2_blocks = _get(p_packet, 0, 4)
    num_kept = _get(p_packet, 8, 16)
    position = _HEADER_BITS + (_BLOCK_BITS << log2_blocks)

    if num_kept * index_bits < hidden_size:
        # Each element looks itself up in the ascending list of survivors.
        low_rank = tl.zeros([BLOCK], tl.int32)
        high_rank = low_rank + num_kept
        for _ in range(index_bits + 1):
            middle = (low_rank + high_rank) >> 1
            is_open = low_rank < high_rank
            found = _get(p_packet, position + tl.where(is_open, middle, 0) * index_bits, index_bits)
            low_rank = tl.where(is_open & (found < lane), middle + 1, low_rank)
            high_rank = tl.where(is_open & (found >= lane), middle, high_rank)
        rank = tl.where(low_rank < num_kept, low_rank, 0)
        found = _get(p_packet, position + rank * index_bits, index_bits)
        keep = is_element & (low_rank < num_kept) & (found == lane)
        position += num_kept * index_bits
    else:
        keep = _get(p_packet, position + tl.where(is_element, lane, 0), 1) > 0
        keep = keep & is_element
        rank = tl.cumsum(keep.to(tl.int32)) - 1
        position += hidden_size

    # Lanes without a survivor read somewhere within the packet.
    tag_bits = 1 + log2_blocks
    tag = _get(p_packet, position + tl.where(keep, rank, 0) * tag_bits, tag_bits)
    position += num_kept * tag_bits
    entry = _HEADER_BITS + _BLOCK_BITS * tl.where(keep, tag >> 1, 0)
    width = tl.where(keep, _get(p_packet, entry, 4), 0)
    code = _get(p_packet, position + tl.cumsum(width) - width, width)

    exponent = _get(p_packet, entry + 20, 16) >> 7
    low = _fixed(_get(p_packet, entry + 4, 16) << 16, exponent)
    span = _fixed(_get(p_packet, entry + 20, 16) << 16, exponent) - low
    level = _level(code, width, low, span)
    # 24 bits convert exactly; the power of two is then added to the exponent as an integer.
    bits = level.to(tl.float32).to(tl.int32, bitcast=True)
    is_normal = (level > 0) & ((bits >> 23) + exponent > 150)
    bits = tl.where(is_normal, bits + ((exponent - 150) << 23), 0)
    bits = bits | ((tag & 1) << 31)
    value = tl.where(keep, bits, 0).to(tl.float32, bitcast=True)
    tl.store(p_out + i_t * stride_out + lane, value.to(p_out.dtype.element_ty), mask=is_element)
