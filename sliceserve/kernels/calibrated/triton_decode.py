"""Packets to rows in Triton.

- A symbol is searched among the 24 starts of its row in five halvings. A table of all 4096 slots
  would answer in one look-up, but its megabytes would come from memory after each pass of the
  model, while all rows of starts together are 32 KB and stay in the first cache.
- Whether a lane's second symbol takes in a word is known before its first word is read, so one
  prefix sum over the lanes finds all words of a step.
"""

import triton
import triton.language as tl

from sliceserve.kernels import rans
from sliceserve.kernels.calibrated import layout
from sliceserve.kernels.calibrated.layout import Fault
from sliceserve.kernels.calibrated.triton_levels import extra_bits, scale_at, value_of

_NUM_SCALES = tl.constexpr(layout.NUM_SCALES)
_PADDED_SYMBOLS = tl.constexpr(layout.PADDED_SYMBOLS)
_NUM_DIRECT = tl.constexpr(layout.NUM_DIRECT)
_NUM_POINTS = tl.constexpr(layout.NUM_POINTS)
_POINT_BITS = tl.constexpr(layout.POINT_BITS)
_ESCAPE = tl.constexpr(layout.ESCAPE)
_INITIAL = tl.constexpr(rans.INITIAL)
_TOTAL_BITS = tl.constexpr(rans.TOTAL_BITS)
_TOTAL = tl.constexpr(rans.TOTAL)
_SHORT = tl.constexpr(int(Fault.SHORT))
_ESCAPED = tl.constexpr(int(Fault.ESCAPED))
_STATE = tl.constexpr(int(Fault.STATE))
_LENGTH = tl.constexpr(int(Fault.LENGTH))
_END = tl.constexpr(int(Fault.END))


# What changes from step to step is not specialised: one compilation serves all.
@triton.jit(do_not_specialize=["num_rows", "p_data"])
def decode_kernel(
    p_data,
    p_offsets,
    p_base_scales,
    p_starts,
    p_centroids,
    p_rows,
    p_points,
    p_payloads,
    p_faults,
    num_rows,
    hidden_size,
    PREFIX: tl.constexpr,
    HAS_PAYLOAD: tl.constexpr,
    TOKENS: tl.constexpr,
    LANES: tl.constexpr,
):
    lane = tl.arange(0, LANES)[None, :]
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[:, None]
    is_token = token < num_rows
    token = tl.where(is_token, token, 0).to(tl.int64)
    begin = tl.load(p_offsets + token)
    length = (tl.load(p_offsets + token + 1) - begin).to(tl.int32)
    p_data += begin
    header = tl.load(p_data, mask=length > 0, other=0).to(tl.int32)
    point = header & (_NUM_POINTS - 1)
    p_starts += ((header >> _POINT_BITS) & 3) * (_NUM_SCALES * 2 * _PADDED_SYMBOLS)
    p_rows += token * hidden_size

    position = tl.zeros([TOKENS, 1], tl.int32) + PREFIX
    low = _word(p_data, position + 4 * lane, length, True)
    state = (_word(p_data, position + 4 * lane + 2, length, True) << 16) | low
    position += 4 * LANES
    fault = tl.where(tl.min(state, axis=1, keep_dims=True) < _INITIAL, _STATE, 0)
    fault = tl.where((header & _ESCAPE) > 0, _ESCAPED, fault)
    fault = tl.where(position > length, _SHORT, fault)

    trellis = tl.zeros([TOKENS, LANES], tl.int32)
    for step in range(tl.cdiv(hidden_size, LANES)):
        i = step * LANES + lane
        is_component = i < hidden_size
        quantizer = trellis >> 1
        row = 2 * scale_at(p_base_scales, i, is_component, point) + quantizer
        p_row = p_starts + row * _PADDED_SYMBOLS
        slot = (state & (_TOTAL - 1)).to(tl.int32)
        symbol = tl.zeros([TOKENS, LANES], tl.int32)
        for k in tl.static_range(5):
            middle = symbol + (16 >> k)
            symbol = tl.where(tl.load(p_row + middle) <= slot, middle, symbol)
        start = tl.load(p_row + symbol).to(tl.int32)
        freq = tl.load(p_row + symbol + 1).to(tl.int32) - start
        popped = freq.to(tl.uint32) * (state >> _TOTAL_BITS) + (slot - start).to(tl.uint32)
        popped = tl.where(is_component, popped, state)
        bits = tl.where(is_component, extra_bits(symbol), 0)
        room = (-bits + _TOTAL_BITS).to(tl.uint32)

        takes_1 = is_component & (popped < _INITIAL)
        state = tl.where(takes_1, popped << 16, popped)
        # The second symbol leaves state >> bits but for its lowest bits, whatever the first word.
        takes_2 = (bits > 0) & ((state >> bits.to(tl.uint32)) < _INITIAL)
        first = takes_1.to(tl.int32)
        count = first + takes_2.to(tl.int32)
        at = position + 2 * (tl.cumsum(count, axis=1) - count)
        position += 2 * tl.sum(count, axis=1, keep_dims=True)
        state |= _word(p_data, at, length, takes_1)
        extra = ((state & (_TOTAL - 1)) >> room).to(tl.int32)
        state = ((state >> _TOTAL_BITS) << room) | (state & ((1 << room) - 1))
        word_2 = _word(p_data, at + 2 * first, length, takes_2)
        state = tl.where(takes_2, (state << 16) | word_2, state)

        large = (1 << tl.maximum(bits - 1, 0)) + (extra >> 1) + (_NUM_DIRECT - 1)
        level = tl.where(symbol < _NUM_DIRECT, symbol, large)
        value = value_of(level, row, quantizer, p_centroids)
        is_negative = (bits > 0) & ((extra & 1) > 0)
        value = tl.where(is_negative, -value, value)
        tl.store(p_rows + i, value, mask=is_token & is_component)
        trellis = quantizer | (((level ^ trellis) & 1) << 1)

    state -= _INITIAL
    limit = tl.where(lane == 0, _INITIAL if HAS_PAYLOAD else 1, 1).to(tl.uint32)
    is_open = tl.max((state >= limit).to(tl.int32), axis=1, keep_dims=True) > 0
    fault = tl.where((fault == 0) & is_open, _END, fault)
    fault = tl.where(((fault == 0) | (fault == _END)) & (position != length), _LENGTH, fault)
    tl.store(p_faults + token, fault, mask=is_token)
    tl.store(p_points + token, point.to(tl.uint8), mask=is_token)
    payload = tl.sum(tl.where(lane == 0, state.to(tl.int32), 0), axis=1, keep_dims=True)
    if PREFIX == 2:
        third = tl.load(p_data + 1, mask=length > 1, other=0).to(tl.int32)
        payload |= third << 16
    tl.store(p_payloads + token, payload, mask=is_token)


@triton.jit
def _word(p_data, position, length, mask):
    """Two bytes as uint32; zero past the end or where they are not asked for."""
    mask = mask & (position + 2 <= length)
    low = tl.load(p_data + position, mask=mask, other=0).to(tl.uint32)
    return (tl.load(p_data + position + 1, mask=mask, other=0).to(tl.uint32) << 8) | low
