"""The calibrated codec's kernel in Python's integers: what the bytes are by definition.

**Dependent quantization**, as in VVC (ITU-T H.266; Schwarz et al., "Hybrid Video Coding with
Trellis-Coded Quantization", DCC 2019). Two quantizers of twice the step interleave: level k stands
for 2k steps under the first, for 2k - sign(k) under the second. Which of them a component takes is
known from the parities of the levels before it, by a machine of four states. The levels cost what a
coarse quantizer's do, and the error is less. The encoder finds the path of least Σ error² + λ·rate
(Viterbi) among the two levels around each input and, where one of them is 2, zero.

**Class.** A token's frequencies are those of its class, by Σ |y| / σ over its components.

**rANS** with static frequencies, see ``layout``. Everything is an integer; inputs are in 1/64
steps.
"""

from collections.abc import Sequence

import numpy as np
import torch

from sliceserve.kernels.calibrated.layout import (
    CLASS_CUT,
    CLASS_SHIFT,
    ESCAPE,
    EXTRA_BITS,
    FRACTION_BITS,
    LEVEL_BITS,
    MAX_INPUT,
    NUM_DIRECT,
    NUM_POINTS,
    POINT_BITS,
    RATE_BITS,
    RECIPROCALS,
    SIGMAS,
    SYMBOLS,
    CalibratedError,
    Fault,
    Tables,
    nominal,
    prefix_bytes,
)
from sliceserve.kernels.rans.reference import INITIAL, TOTAL

# By state and parity of the level.
NEXT_STATE = [[0, 2], [2, 0], [1, 3], [3, 1]]


def quantize(
    y64: torch.Tensor, points: torch.Tensor, tables: Tables, lambda_: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Levels, quantizers and classes, as the package's ``quantize``."""
    levels = torch.zeros(y64.shape, dtype=torch.int16)
    quantizers = torch.zeros(y64.shape, dtype=torch.uint8)
    classes = torch.zeros(len(y64), dtype=torch.uint8)
    for t, row in enumerate(y64.tolist()):
        scales = _scales(tables, int(points[t]))
        classes[t] = class_of(row, scales, tables)
        for lane in range(tables.num_lanes):
            own = slice(lane, None, tables.num_lanes)
            path = _best_path(row[own], scales[own], int(classes[t]), tables, lambda_)
            levels[t, own] = torch.tensor([level for level, _ in path], dtype=torch.int16)
            quantizers[t, own] = torch.tensor([quantizer for _, quantizer in path]).byte()
    return levels, quantizers, classes


def encode(
    y64: torch.Tensor,
    points: torch.Tensor,
    payloads: torch.Tensor,
    tables: Tables,
    lambda_: int,
    payload_bytes: int,
) -> tuple[list[bytes], torch.Tensor]:
    """Packets and reconstructed rows, as the package's ``encode``."""
    for t, row in enumerate(y64.tolist()):
        if not 0 <= payloads[t] < 1 << 8 * payload_bytes:
            raise CalibratedError(Fault.PAYLOAD, t)
        if max(map(abs, row)) > MAX_INPUT:
            raise CalibratedError(Fault.INPUT, t)
        if points[t] >= NUM_POINTS:
            raise CalibratedError(Fault.POINT, t)
    levels, quantizers, classes = quantize(y64, points, tables, lambda_)
    packets = []
    reconstructed = torch.zeros(y64.shape, dtype=torch.int32)
    for t, payload in enumerate(payloads.tolist()):
        point, class_ = int(points[t]), int(classes[t])
        components = list(
            zip(_scales(tables, point), quantizers[t].tolist(), levels[t].tolist(), strict=True)
        )
        header = bytes([class_ << POINT_BITS | point]) + payload.to_bytes(3, "little")[2:]
        words = _push_all(components, class_, payload & 0xFFFF, tables)
        packets.append(header[: prefix_bytes(payload_bytes)] + words)
        reconstructed[t] = torch.tensor([_value(*each, tables) for each in components])
    return packets, reconstructed


def decode(
    packets: Sequence[bytes], tables: Tables, payload_bytes: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Reconstructed rows, points and payloads, as the package's ``decode``."""
    rows = torch.zeros(len(packets), tables.hidden_size, dtype=torch.int32)
    points = torch.zeros(len(packets), dtype=torch.uint8)
    payloads = torch.zeros(len(packets), dtype=torch.int32)
    for t, packet in enumerate(packets):
        words_offset = tables.words_offset(payload_bytes)
        if len(packet) < words_offset:
            raise CalibratedError(Fault.SHORT, t)
        if packet[0] & ESCAPE:
            raise CalibratedError(Fault.ESCAPED, t)
        points[t] = packet[0] % NUM_POINTS
        scales = _scales(tables, int(points[t]))
        states_offset = words_offset - 4 * tables.num_lanes
        states = np.frombuffer(packet[states_offset:words_offset], "<u4").tolist()
        levels, low = _pop_all(
            states, packet[words_offset:], scales, packet[0] >> POINT_BITS, tables, t
        )
        rows[t] = torch.tensor([_value(*each, tables) for each in levels])
        if low > 0 and payload_bytes == 0:
            raise CalibratedError(Fault.END, t)
        payloads[t] = low | (packet[1] << 16 if payload_bytes == 3 else 0)
    return rows, points, payloads


def class_of(row: Sequence[int], scales: Sequence[int], tables: Tables) -> int:
    total = 0
    for y, scale in zip(row, scales, strict=True):
        cut = min(abs(y), CLASS_CUT * int(SIGMAS[scale]))
        total += cut * int(RECIPROCALS[scale])
    return int((tables.class_thresholds <= total >> CLASS_SHIFT).sum())


def cost(y: int, level: int, scale: int, quantizer: int, class_: int, tables, lambda_: int) -> int:
    """Error² + λ·rate of one component."""
    error = y - _value(scale, quantizer, level, tables)
    rate = int(tables.rates[class_, scale, quantizer, SYMBOLS[abs(level)]])
    return error * error + (lambda_ * rate >> RATE_BITS)


def candidates(y: int, quantizer: int) -> list[int]:
    """The levels that the encoder considers, in the order in which they win ties.

    The two around y, one of each parity, and zero where the even one of them is two.
    """
    low = (abs(y) + (quantizer << FRACTION_BITS)) >> LEVEL_BITS
    magnitudes = [low, low + 1] if 2 not in (low, low + 1) else [0, low, low + 1]
    return [-m if y < 0 else m for m in magnitudes]


def _best_path(
    row: Sequence[int], scales: Sequence[int], class_: int, tables: Tables, lambda_: int
) -> list[tuple[int, int]]:
    """(level, quantizer) of each component of a lane; ties go to the lower state."""
    paths = {0: (0, [])}  # state → cost, path
    for y, scale in zip(row, scales, strict=True):
        longer = {}
        for state in sorted(paths):
            so_far, path = paths[state]
            for level in candidates(y, state >> 1):
                total = so_far + cost(y, level, scale, state >> 1, class_, tables, lambda_)
                following = NEXT_STATE[state][level & 1]
                if following not in longer or total < longer[following][0]:
                    longer[following] = total, [*path, (level, state >> 1)]
        paths = longer
    return min(sorted(paths.items()), key=lambda item: item[1][0])[1][1]


def _scales(tables: Tables, point: int) -> list[int]:
    return np.maximum(tables.base_scales.astype(int) - point, 0).tolist()


def _value(scale: int, quantizer: int, level: int, tables: Tables) -> int:
    magnitude = abs(level)
    if magnitude < NUM_DIRECT:
        value = int(tables.centroids[scale, quantizer, magnitude])
    else:
        value = nominal(magnitude, quantizer)
    return -value if level < 0 else value


def _push_all(
    components: list[tuple[int, int, int]], class_: int, payload: int, tables: Tables
) -> bytes:
    """(scale, quantizer, level) of every component → states and words."""
    states = [INITIAL + payload] + [INITIAL] * (tables.num_lanes - 1)
    words: list[int] = []

    def push(lane: int, start: int, freq: int) -> None:
        if states[lane] >= freq << 20:
            words.append(states[lane] & 0xFFFF)
            states[lane] >>= 16
        states[lane] = states[lane] // freq * TOTAL + states[lane] % freq + start

    for i, (scale, quantizer, level) in reversed(list(enumerate(components))):
        magnitude, lane = abs(level), i % tables.num_lanes
        symbol = int(SYMBOLS[magnitude])
        bits = int(EXTRA_BITS[symbol])
        if bits > 0:
            above = magnitude - (NUM_DIRECT - 1) - (1 << bits - 1) if symbol >= NUM_DIRECT else 0
            push(lane, (above << 1 | (level < 0)) * (TOTAL >> bits), TOTAL >> bits)
        row = tables.frequencies[class_, scale, quantizer].tolist()
        push(lane, sum(row[:symbol]), row[symbol])
    return np.array(states, "<u4").tobytes() + np.array(words[::-1], "<u2").tobytes()


def _pop_all(
    states: list[int], data: bytes, scales: list[int], class_: int, tables: Tables, index: int
) -> tuple[list[tuple[int, int, int]], int]:
    """(scale, quantizer, level) of every component, and the payload's low bits."""
    if min(states) < INITIAL:
        raise CalibratedError(Fault.STATE, index)
    words = [int.from_bytes(data[i : i + 2], "little") for i in range(0, len(data) - 1, 2)]
    trellis = [0] * tables.num_lanes
    components = []

    def pop(lane: int, start: int, freq: int) -> None:
        states[lane] = freq * (states[lane] // TOTAL) + states[lane] % TOTAL - start
        if states[lane] < INITIAL:
            if not words:
                raise CalibratedError(Fault.LENGTH, index)
            states[lane] = states[lane] << 16 | words.pop(0)

    for i, scale in enumerate(scales):
        lane = i % tables.num_lanes
        quantizer = trellis[lane] >> 1
        row = tables.frequencies[class_, scale, quantizer].tolist()
        slot = states[lane] % TOTAL
        symbol = next(s for s in range(len(row)) if slot < sum(row[: s + 1]))
        pop(lane, sum(row[:symbol]), row[symbol])
        magnitude, negative = symbol, 0
        bits = int(EXTRA_BITS[symbol])
        if bits > 0:
            extra = states[lane] % TOTAL // (TOTAL >> bits)
            pop(lane, extra * (TOTAL >> bits), TOTAL >> bits)
            negative = extra & 1
            if symbol >= NUM_DIRECT:
                magnitude = NUM_DIRECT - 1 + (1 << bits - 1) + (extra >> 1)
        components.append((scale, quantizer, -magnitude if negative else magnitude))
        trellis[lane] = NEXT_STATE[trellis[lane]][magnitude & 1]
    if words or len(data) % 2:
        raise CalibratedError(Fault.LENGTH, index)
    if max(states) >= 2 * INITIAL or any(state != INITIAL for state in states[1:]):
        raise CalibratedError(Fault.END, index)
    return components, states[0] - INITIAL
