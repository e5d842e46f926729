"""The packet of the calibrated codec's kernel, and the tables that both sides hold.

    bytes                field
    1                    bits 0-4: operating point; bits 5-6: class; bit 7: zero here, it marks a
                         packet that the codec wrote without this kernel
    0 or 1               bits 16-23 of the payload, where that has three bytes
    4 × lanes            the state that each lane's rANS encoder ended in
    2 × words            the words of all lanes, as a decoder that walks the components in order
                         takes them in: no length is stored

All little-endian. Component i belongs to lane i mod lanes; every lane has its own trellis and its
own rANS state, of the coder in ``kernels.rans``. The encoder's first state is 2^16 in every lane,
plus bits 0-15 of the payload in lane 0, so that the decoder ends in those.

A component costs two symbols. The first is coded with the frequencies of the token's class, the
component's scale and the quantizer that the trellis prescribes, the second with equal ones:

    magnitude m of the level     first       second, in bits from the least significant
    0                            0           nothing
    1 to 11                      m           sign (1 is negative)
    12 to 4106                   12 + j      sign, then the j bits of m - 11 below its highest,
                                             which is bit j
"""

import math
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
import torch

from sliceserve.kernels import rans

NUM_POINTS = 32
NUM_CLASSES = 4
NUM_SCALES = 64
NUM_SYMBOLS = 24
# Magnitudes below have a symbol of their own, and a centroid.
NUM_DIRECT = 12

MAX_HIDDEN_SIZE = 16384
# The largest |y| in 1/64 steps: 8192 steps, whose levels are far from the largest magnitude.
MAX_INPUT = 1 << 19
MAX_MAGNITUDE = NUM_DIRECT - 1 + (1 << (NUM_SYMBOLS - NUM_DIRECT)) - 1

# A step is 64 units; the levels of one quantizer are two steps apart.
FRACTION_BITS = 6
LEVEL_BITS = FRACTION_BITS + 1
# A centroid is this near to the nominal value, so that costs have a bound.
MAX_CENTROID_SHIFT = 1 << FRACTION_BITS

# Rates are in 1/1024 bit. λ is in (1/64 step)² per bit, as squared errors are: 1638 for 0.4 Δ² per
# bit. A squared error is at most 384² (a level of 2 given up for zero) and a rate at most 24 bits,
# so a component costs less than 2^21 and a product of λ and rate fits 31 bits.
RATE_BITS = 10
MAX_LAMBDA = (1 << 16) - 1
# What a state costs that the trellis cannot have reached: beyond any two components.
UNREACHABLE = 1 << 28

POINT_BITS = 5
ESCAPE = 0x80
PAYLOAD_BYTES = (0, 2, 3)

# Scale index s stands for a standard deviation of 2^((s - 16) / 4) steps; in 1/64 steps, and the
# reciprocals in units of 2^-20.
SIGMAS = np.array([round(64 * 2 ** ((s - 16) / 4)) for s in range(NUM_SCALES)], np.int32)
RECIPROCALS = np.array([round(2**20 / sigma) for sigma in SIGMAS.tolist()], np.int32)
# A token's class is by Σ |y| / σ, cut at 4 a component and counted in 1/16.
CLASS_CUT = 4
CLASS_SHIFT = 16

# The first symbol of each magnitude.
SYMBOLS = np.array(
    [
        m if m < NUM_DIRECT else NUM_DIRECT + (m - NUM_DIRECT + 1).bit_length() - 1
        for m in range(MAX_MAGNITUDE + 1)
    ],
    np.uint8,
)
# How many bits the second symbol has.
EXTRA_BITS = np.array([0] + [1] * (NUM_DIRECT - 1) + [*range(1, 13)], np.int32)

# Rows of ``Tables.starts`` are as long as a search in five steps needs.
PADDED_SYMBOLS = 32


class CalibratedError(ValueError):
    """A row that cannot be encoded, or a packet that no encoder wrote; ``index`` of the batch."""

    def __init__(self, fault: int, index: int) -> None:
        super().__init__(EXPLANATIONS[Fault(fault)])
        self.index = index


class Fault(IntEnum):
    """What is wrong with a row or a packet."""

    NONE = 0
    INPUT = 1
    POINT = 2
    PAYLOAD = 3
    SHORT = 4
    ESCAPED = 5
    STATE = 6
    LENGTH = 7
    END = 8


EXPLANATIONS = {
    Fault.INPUT: f"a component is beyond {MAX_INPUT >> FRACTION_BITS} steps; send the row escaped",
    Fault.POINT: f"the operating point is not below {NUM_POINTS}",
    Fault.PAYLOAD: "the payload does not fit the bytes that were agreed on",
    Fault.SHORT: "it is too short for its header and states",
    Fault.ESCAPED: "it is marked as escaped, which is for the codec to read",
    Fault.STATE: "a lane begins in a state that no encoder ends in",
    Fault.LENGTH: "its words end before or after its components do",
    Fault.END: "a lane ends in a state that no encoder begins in",
}


@dataclass(frozen=True, eq=False)
class Tables:
    """What a profile knows in integers, the same on both sides. Raises ValueError for bad ones.

    ``frequencies`` uint16 (4, 64, 2, 24): class, scale, quantizer, symbol; each row adds up to 4096
    and has no zero. ``centroids`` int32 (64, 2, 12): scale, quantizer, magnitude of the level → its
    value in 1/64 steps, 0 for 0 and at most 64 from nominal. ``class_thresholds`` int64 (3,),
    ascending. ``base_scales`` uint8 (d,): each component's scale index at operating point 0, below
    64; at point p it is max(base - p, 0). Arrays must not change afterwards.
    """

    frequencies: np.ndarray
    centroids: np.ndarray
    class_thresholds: np.ndarray
    base_scales: np.ndarray

    def __post_init__(self) -> None:
        _expect(self.frequencies, "frequencies", np.uint16, _FREQUENCY_SHAPE)
        _expect(self.centroids, "centroids", np.int32, _CENTROID_SHAPE)
        _expect(self.class_thresholds, "class_thresholds", np.int64, (NUM_CLASSES - 1,))
        _expect(self.base_scales, "base_scales", np.uint8, self.base_scales.shape[:1])
        if not 1 <= self.hidden_size <= MAX_HIDDEN_SIZE:
            raise ValueError(f"base_scales has {self.hidden_size} entries, not 1 to 16384")
        if self.base_scales.max() >= NUM_SCALES:
            raise ValueError(f"base_scales must be below {NUM_SCALES}")
        if self.frequencies.min() < 1 or (self.frequencies.sum(axis=-1) != rans.TOTAL).any():
            raise ValueError(f"rows of frequencies must be positive and add up to {rans.TOTAL}")
        shift = np.abs(self.centroids.astype(np.int64) - NOMINAL)
        if shift.max() > MAX_CENTROID_SHIFT or self.centroids[..., 0].any():
            raise ValueError("centroids must be 0 for level 0, else at most 64 from nominal")
        if (np.diff(self.class_thresholds) < 0).any():
            raise ValueError("class_thresholds must ascend")

    @property
    def hidden_size(self) -> int:
        return self.base_scales.size

    @property
    def num_lanes(self) -> int:
        """1 below 2048 components; beyond, a lane for 512 to 1023 of them, so that a GPU has work.

        A power of two. A lane costs 4 bytes.
        """
        if self.hidden_size < 2048:
            return 1
        return 1 << ((self.hidden_size // 512).bit_length() - 1)

    @cached_property
    def starts(self) -> np.ndarray:
        """uint16 (4, 64, 2, 32): the first slot of each symbol, 4096 from symbol 24 on."""
        starts = np.full((*_FREQUENCY_SHAPE[:-1], PADDED_SYMBOLS), rans.TOTAL, np.uint16)
        starts[..., 0] = 0
        starts[..., 1 : NUM_SYMBOLS + 1] = np.cumsum(self.frequencies, axis=-1)
        return starts

    @cached_property
    def rates(self) -> np.ndarray:
        """int32 (4, 64, 2, 24): what a symbol and the bits behind it cost, in 1/1024 bit."""
        bits = [rans.TOTAL_BITS - math.log2(f) for f in range(1, rans.TOTAL + 1)]
        rates = np.array([round(b * 2**RATE_BITS) for b in bits], np.int32)
        return rates[self.frequencies - np.uint16(1)] + (EXTRA_BITS << RATE_BITS)

    def max_packet_bytes(self, payload_bytes: int) -> int:
        """Every symbol sends one word away at most."""
        return self.words_offset(payload_bytes) + 4 * self.hidden_size

    def words_offset(self, payload_bytes: int) -> int:
        """Where in a packet its words begin."""
        return prefix_bytes(payload_bytes) + rans.STATE_BYTES * self.num_lanes


def nominal(magnitude, quantizer):
    """The value of a level in 1/64 steps: 2m steps, or 2m - 1 under quantizer 1."""
    return (magnitude << LEVEL_BITS) - ((quantizer if magnitude > 0 else 0) << FRACTION_BITS)


NOMINAL = np.array([[nominal(m, q) for m in range(NUM_DIRECT)] for q in (0, 1)], np.int32)
_FREQUENCY_SHAPE = (NUM_CLASSES, NUM_SCALES, 2, NUM_SYMBOLS)
_CENTROID_SHAPE = (NUM_SCALES, 2, NUM_DIRECT)


def prefix_bytes(payload_bytes: int) -> int:
    """What stands before the states: the header, and a third byte of payload."""
    return 2 if payload_bytes == 3 else 1


def expect_payload_bytes(payload_bytes: int) -> None:
    if payload_bytes not in PAYLOAD_BYTES:
        raise ValueError(f"a payload has 0, 2 or 3 bytes, not {payload_bytes}")


def expect_lambda(lambda_: int) -> None:
    if not 0 <= lambda_ <= MAX_LAMBDA:
        raise ValueError(f"lambda_ is {lambda_}, not 0 to {MAX_LAMBDA} (1/4096 step² per bit)")


def expect_rows(
    y64: torch.Tensor, points: torch.Tensor, payloads: torch.Tensor, tables: Tables
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The encoder's inputs, contiguous. Raises ValueError for other dtypes or shapes."""
    num_rows = len(points)
    return (
        _contiguous("y64", y64, torch.int32, (num_rows, tables.hidden_size)),
        _contiguous("points", points, torch.uint8, (num_rows,)),
        _contiguous("payloads", payloads, torch.int32, (num_rows,)),
    )


def _contiguous(
    name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]
) -> torch.Tensor:
    if tensor.dtype != dtype or tensor.shape != shape:
        raise ValueError(
            f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {dtype} {shape}"
        )
    return tensor.contiguous()


def _expect(array: np.ndarray, name: str, dtype: type, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(
            f"{name} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}, contiguous"
        )
