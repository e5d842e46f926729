"""Rows to packets in Triton: the class, the trellis forward, then back with rANS behind it.

Costs of the trellis are int32, less those of state 0 after each step: no two states are further
apart than two components cost (see ``layout``).
"""

import triton
import triton.language as tl

from sliceserve.kernels import rans
from sliceserve.kernels.calibrated import layout
from sliceserve.kernels.calibrated.layout import Fault
from sliceserve.kernels.calibrated.triton_levels import extra_bits, scale_at, value_of

_NUM_SCALES = tl.constexpr(layout.NUM_SCALES)
_NUM_SYMBOLS = tl.constexpr(layout.NUM_SYMBOLS)
_PADDED_SYMBOLS = tl.constexpr(layout.PADDED_SYMBOLS)
_NUM_DIRECT = tl.constexpr(layout.NUM_DIRECT)
_STEP = tl.constexpr(1 << layout.FRACTION_BITS)
_LEVEL_BITS = tl.constexpr(layout.LEVEL_BITS)
# No input is further from zero where the even level is 2.
_REACH_OF_ZERO = tl.constexpr(3 << layout.LEVEL_BITS)
_RATE_BITS = tl.constexpr(layout.RATE_BITS)
_MAX_INPUT = tl.constexpr(layout.MAX_INPUT)
_UNREACHABLE = tl.constexpr(layout.UNREACHABLE)
_CLASS_CUT = tl.constexpr(layout.CLASS_CUT)
_CLASS_SHIFT = tl.constexpr(layout.CLASS_SHIFT)
_NUM_THRESHOLDS = tl.constexpr(layout.NUM_CLASSES - 1)
_NUM_POINTS = tl.constexpr(layout.NUM_POINTS)
_POINT_BITS = tl.constexpr(layout.POINT_BITS)
_INITIAL = tl.constexpr(rans.INITIAL)
_TOTAL_BITS = tl.constexpr(rans.TOTAL_BITS)
_TOTAL = tl.constexpr(rans.TOTAL)
_ROOM_BITS = tl.constexpr(32 - rans.TOTAL_BITS)
_INPUT = tl.constexpr(int(Fault.INPUT))
_POINT = tl.constexpr(int(Fault.POINT))
_PAYLOAD = tl.constexpr(int(Fault.PAYLOAD))


@triton.jit(do_not_specialize=["payload_limit"])
def classify_kernel(
    p_y,
    p_points,
    p_payloads,
    p_base_scales,
    p_sigmas,
    p_reciprocals,
    p_thresholds,
    p_heads,
    hidden_size,
    payload_limit,
    BLOCK: tl.constexpr,
):
    """The class of a token, or minus its fault, to the first number of its head."""
    i_t = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    mask = i < hidden_size
    y = tl.load(p_y + i_t * hidden_size + i, mask=mask, other=0)
    point = tl.load(p_points + i_t).to(tl.int32)
    payload = tl.load(p_payloads + i_t)
    scale = scale_at(p_base_scales, i, mask, point)
    cut = tl.minimum(tl.abs(y), tl.load(p_sigmas + scale) * _CLASS_CUT)
    total = tl.sum((cut * tl.load(p_reciprocals + scale)).to(tl.int64)) >> _CLASS_SHIFT
    result = 0
    for k in tl.static_range(_NUM_THRESHOLDS):
        result += (tl.load(p_thresholds + k) <= total).to(tl.int32)
    result = tl.where(point >= _NUM_POINTS, -_POINT, result)
    is_beyond = tl.max(((y > _MAX_INPUT) | (y < -_MAX_INPUT)).to(tl.int32))
    result = tl.where(is_beyond > 0, -_INPUT, result)
    result = tl.where((payload < 0) | (payload >= payload_limit), -_PAYLOAD, result)
    tl.store(p_heads + i_t * 2, result)


# The number of rows changes from step to step: one compilation serves all.
@triton.jit(do_not_specialize=["num_rows", "lambda_"])
def encode_kernel(
    p_y,
    p_points,
    p_payloads,
    p_base_scales,
    p_starts,
    p_rates,
    p_centroids,
    p_decisions,
    p_words,
    p_heads,
    p_reconstructed,
    num_rows,
    hidden_size,
    max_words,
    lambda_,
    TOKENS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Words from the end of a token's row on, and its head: header and third byte of the payload,
    or minus the fault; where its words begin."""
    lane = tl.arange(0, LANES)[None, :]
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[:, None]
    is_token = token < num_rows
    token = tl.where(is_token, token, 0).to(tl.int64)
    # Of rows with a fault something is coded that leaves no bounds.
    point = tl.load(p_points + token).to(tl.int32) & (_NUM_POINTS - 1)
    # Another program may have put its head where a token that is not there would look for one.
    head = tl.load(p_heads + token * 2, mask=is_token, other=0)
    class_ = tl.maximum(head, 0)
    p_rates += class_ * (_NUM_SCALES * 2 * _NUM_SYMBOLS)
    p_starts += class_ * (_NUM_SCALES * 2 * _PADDED_SYMBOLS)
    p_y += token * hidden_size
    p_decisions += token * hidden_size
    p_reconstructed += token * hidden_size
    p_words += token * max_words
    num_steps = tl.cdiv(hidden_size, LANES)

    cost_0 = tl.zeros([TOKENS, LANES], tl.int32)
    cost_1 = cost_0 + _UNREACHABLE
    cost_2 = cost_1
    cost_3 = cost_1
    for step in range(num_steps):
        i = step * LANES + lane
        mask = is_token & (i < hidden_size)
        magnitude = _magnitude(tl.load(p_y + i, mask=mask, other=0))
        row = 2 * scale_at(p_base_scales, i, i < hidden_size, point)
        even_0, odd_0, zero_0 = _costs(magnitude, 0, row, p_rates, p_centroids, lambda_)
        even_1, odd_1, zero_1 = _costs(magnitude, 1, row, p_rates, p_centroids, lambda_)
        next_0, higher_0 = _better(cost_0 + even_0, cost_1 + odd_0)
        next_1, higher_1 = _better(cost_2 + even_1, cost_3 + odd_1)
        next_2, higher_2 = _better(cost_0 + odd_0, cost_1 + even_0)
        next_3, higher_3 = _better(cost_2 + odd_1, cost_3 + even_1)
        decision = higher_0 | (higher_1 << 1) | (higher_2 << 2) | (higher_3 << 3)
        decision |= (zero_0 << 4) | (zero_1 << 5)
        tl.store(p_decisions + i, decision.to(tl.uint8), mask=mask)
        cost_1 = tl.where(mask, next_1 - next_0, cost_1)
        cost_2 = tl.where(mask, next_2 - next_0, cost_2)
        cost_3 = tl.where(mask, next_3 - next_0, cost_3)
    # What one thread stored another may read.
    tl.debug_barrier()

    # The cost of state 0 is now 0.
    least = tl.minimum(cost_1, 0)
    trellis = (cost_1 < 0).to(tl.int32)
    trellis = tl.where(cost_2 < least, 2, trellis)
    least = tl.minimum(cost_2, least)
    trellis = tl.where(cost_3 < least, 3, trellis)

    payload = tl.load(p_payloads + token)
    state = (tl.where(lane == 0, payload & 0xFFFF, 0) + _INITIAL).to(tl.uint32)
    position = tl.zeros([TOKENS, 1], tl.int32) + max_words
    for back in range(num_steps):
        i = (num_steps - 1 - back) * LANES + lane
        mask = is_token & (i < hidden_size)
        y = tl.load(p_y + i, mask=mask, other=0)
        decision = tl.load(p_decisions + i, mask=mask, other=0).to(tl.int32)
        higher = (decision >> trellis) & 1
        parity = higher ^ (trellis >> 1)
        quantizer = trellis & 1
        is_zero = (parity == 0) & (((decision >> (4 + quantizer)) & 1) > 0)
        level = tl.where(is_zero, 0, _nearest(_magnitude(y), quantizer, parity))
        trellis = tl.where(mask, (quantizer << 1) | higher, trellis)
        row = 2 * scale_at(p_base_scales, i, i < hidden_size, point) + quantizer
        value = value_of(level, row, quantizer, p_centroids)
        tl.store(p_reconstructed + i, tl.where(y < 0, -value, value), mask=mask)

        symbol = _symbol(level)
        # A component that is not there costs nothing.
        bits = tl.where(mask, extra_bits(symbol), 0)
        above = tl.where(
            symbol < _NUM_DIRECT, 0, level - (_NUM_DIRECT - 1) - (1 << tl.maximum(bits - 1, 0))
        )
        extra = tl.where(bits > 0, (above << 1) | (y < 0).to(tl.int32), 0).to(tl.uint32)
        room = (-bits + _TOTAL_BITS).to(tl.uint32)
        spills_2 = (state >> _ROOM_BITS) >= (1 << room)
        word_2 = state.to(tl.int16)
        state = tl.where(spills_2, state >> 16, state)
        state = _split(state, room) | (extra << room)

        start = tl.load(p_starts + row * _PADDED_SYMBOLS + symbol).to(tl.int32)
        after = tl.load(p_starts + row * _PADDED_SYMBOLS + symbol + 1).to(tl.int32)
        freq = tl.where(mask, after - start, _TOTAL).to(tl.uint32)
        start = tl.where(mask, start, 0).to(tl.uint32)
        spills_1 = (state >> _ROOM_BITS) >= freq
        word_1 = state.to(tl.int16)
        state = tl.where(spills_1, state >> 16, state)
        quotient = state // freq
        state = quotient * _TOTAL + (state - quotient * freq) + start

        first = spills_1.to(tl.int32)
        count = first + spills_2.to(tl.int32)
        position -= tl.sum(count, axis=1, keep_dims=True)
        at = position + tl.cumsum(count, axis=1) - count
        tl.store(p_words + at, word_1, mask=spills_1)
        tl.store(p_words + at + first, word_2, mask=spills_2)

    position -= 2 * LANES
    at = position + 2 * lane
    tl.store(p_words + at, state.to(tl.int16), mask=is_token)
    tl.store(p_words + at + 1, (state >> 16).to(tl.int16), mask=is_token)
    header = (class_ << _POINT_BITS) | point | ((payload >> 16) << 8)
    tl.store(p_heads + token * 2, tl.where(head < 0, head, header), mask=is_token)
    tl.store(p_heads + token * 2 + 1, position, mask=is_token)


@triton.jit
def _magnitude(y):
    """Within bounds even where the input is not."""
    return tl.minimum(tl.abs(tl.maximum(y, -_MAX_INPUT)), _MAX_INPUT)


@triton.jit
def _costs(magnitude, QUANTIZER: tl.constexpr, row, p_rates, p_centroids, lambda_):
    """The costs of the best even and the best odd level, and whether the even one is zero for
    having won against two."""
    row += QUANTIZER
    level = _nearest(magnitude, QUANTIZER, 0)
    even = _cost(magnitude, level, QUANTIZER, row, p_rates, p_centroids, lambda_)
    zero = _rate_cost(0, row, p_rates, lambda_)
    # Where zero is not asked, its square may overflow.
    near = tl.minimum(magnitude, _REACH_OF_ZERO)
    zero += near * near
    zero_won = (level == 2) & (zero <= even)
    even = tl.where(zero_won, zero, even)
    odd_level = _nearest(magnitude, QUANTIZER, 1)
    odd = _cost(magnitude, odd_level, QUANTIZER, row, p_rates, p_centroids, lambda_)
    return even, odd, zero_won.to(tl.int32)


@triton.jit
def _cost(magnitude, level, QUANTIZER: tl.constexpr, row, p_rates, p_centroids, lambda_):
    error = magnitude - value_of(level, row, QUANTIZER, p_centroids)
    return error * error + _rate_cost(_symbol(level), row, p_rates, lambda_)


@triton.jit
def _rate_cost(symbol, row, p_rates, lambda_):
    return (lambda_ * tl.load(p_rates + row * _NUM_SYMBOLS + symbol)) >> _RATE_BITS


@triton.jit
def _nearest(magnitude, quantizer, parity):
    """Of the two levels around an input, the one of that parity."""
    low = (magnitude + quantizer * _STEP) >> _LEVEL_BITS
    return low + ((low ^ parity) & 1)


@triton.jit
def _symbol(level):
    """12 + floor(log2(level - 11)) from 12 on: the exponent of an exact float."""
    above = tl.maximum(level - (_NUM_DIRECT - 1), 1).to(tl.float32)
    exponent = (above.to(tl.int32, bitcast=True) >> 23) - 127
    return tl.where(level < _NUM_DIRECT, level, exponent + _NUM_DIRECT)


@triton.jit
def _better(lower, higher):
    return tl.minimum(lower, higher), (higher < lower).to(tl.int32)


@triton.jit
def _split(state, room):
    """``state`` with ``_TOTAL_BITS - room`` zero bits put in above its lowest ``room``."""
    return ((state >> room) << _TOTAL_BITS) | (state & ((1 << room) - 1))
