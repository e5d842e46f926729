"""A SLICER packet, bit by bit, and what its encoder is told.

Two layouts begin alike; an encoder takes the one that makes its packet shorter, the raw one where
they tie. In either a packet is one string of bits: bit p is bit p mod 8, counted from the least
significant, of byte p // 8, and a field's least significant bit comes first.

    bits                 field
    3                    log2 M, M the number of magnitude blocks
    1                    1 if the rest is entropy-coded
    4                    format version, 2
    16                   K, the number of surviving elements

then, in the raw layout,

    M × 36               per block, largest magnitudes first: code width b (4 bits), lo and hi, the
                         range of magnitudes, as the bits of bfloat16 (16 each)
    d or K·ceil(log2 d)  survivors: a bit per element or, where smaller, ascending indices
    K × (1 + log2 M)     per survivor, in index order: sign (1 = negative), then block
    Σ b                  per survivor, in index order: its code, as wide as its block's b
    0 to 7               zeros up to a whole byte

where every position follows from the fields before it, so a GPU finds them all with two prefix
sums; or, entropy-coded, one rANS stream (``kernels.rans``) up to the end of the packet, whose
payload is hi of the first block, and whose symbols are, F(w) being w bits that are as likely one
as zero, and N a number below 2^15: its length in bits, F(4), then the bits below its leading one,
highest first, each F(1),

    per block            b, F(4); where b > 1 its skew, F(4); N of hi − lo; but for the last
                         block, N of lo + 1 − the next block's hi, in bfloat16 steps
    per element          whether it survives
    per 12 survivors     their signs, the first one's lowest, F(12); of the last few, less
    per survivor         its block, its code

Whether an element survives is one bit, as likely one as survivors are among the elements that are
left; a block is log2 M bits, highest first, each as likely one as the rest of the survivors is in
the upper half of the blocks that are left to choose from. What is certain costs nothing, and no
stream can name survivors or blocks of other sizes than it must. A code's bits come highest first,
less likely one the larger the block's skew is and the higher the bit (``SKEWED``), which is what
an exponential density does; those that are as likely one as zero are one F.
"""

from dataclasses import dataclass
from enum import IntEnum

FORMAT_VERSION = 2
CODED = 1 << 3
HEADER_BITS = 24
BLOCK_BITS = 36
MAX_WIDTH = 12
MAX_LOG2_BLOCKS = 4

# Sums of squares of 24-bit magnitudes over one row then fit a signed 64-bit integer.
MAX_HIDDEN_SIZE = 16384

# The smallest normal float32 and infinity, as bits. Magnitudes below the first count as zero, so
# that a thread that flushes subnormal numbers to zero writes the same bytes as one that does not.
MIN_NORMAL = 0x00800000
INFINITY = 0x7F800000
# The largest finite bfloat16, as bits: no block's upper end is rounded beyond it.
MAX_BFLOAT16 = 0x7F7F

# The distortion budget is an integer in units of 2^-DISTORTION_SHIFT.
DISTORTION_SHIFT = 30

# How likely a code's bit is one, of 4096: entry min(max(skew − place, 0), 6), place 0 being the
# highest. From the second on they are 4096 / (1 + e^z) for z = 1/4, 1/2, 1, 2, 4 and 8.
SKEWED = (2048, 1793, 1546, 1102, 488, 74, 1)
MAX_SKEW = 15
SIGNS_AT_ONCE = 12

# Fields are at most 16 bits wide and are read as three whole bytes.
GUARD = bytes(3)


class SlicerError(ValueError):
    """A row that cannot be encoded, or a packet that no encoder wrote; ``index`` of the batch."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


class Fault(IntEnum):
    """What is wrong with a packet."""

    NONE = 0
    VERSION = 1
    NUM_BLOCKS = 2
    NUM_KEPT = 3
    WIDTH = 4
    RANGE = 5
    LENGTH = 6
    SURVIVORS = 7
    MEMBERS = 8
    PADDING = 9
    STREAM = 10


EXPLANATIONS = {
    Fault.VERSION: f"its format version is not {FORMAT_VERSION}",
    Fault.NUM_BLOCKS: f"it has more than {2**MAX_LOG2_BLOCKS} magnitude blocks",
    Fault.NUM_KEPT: "it keeps more elements than the hidden size",
    Fault.WIDTH: f"a code is wider than {MAX_WIDTH} bits, or an empty block has a code",
    Fault.RANGE: "a block's range is not finite, not normal or not in order",
    Fault.LENGTH: "its length is not what its fields add up to",
    Fault.SURVIVORS: "its survivors do not ascend within the hidden size or are not K",
    Fault.MEMBERS: "its magnitude blocks are not of equal size",
    Fault.PADDING: "the bits after its last field are not zero",
    Fault.STREAM: "its entropy-coded fields do not end where it ends, or are out of bounds",
}


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """SLICER's knobs as the kernels take them.

    ``num_kept`` [K] of the row's elements survive, ``asymmetry`` [λ] weighs negative ones in the
    filter, ``num_blocks`` [M] is a power of two up to 16, ``distortion`` [δ] is in units of 2^-30,
    ``max_bits`` [b_max] is 1 to 12.
    """

    num_kept: int
    asymmetry: float
    num_blocks: int
    distortion: int
    max_bits: int


def block_end(block: int, num_kept: int, num_blocks: int) -> int:
    """Survivors in this block and those before it: sizes differ by one at most, larger first."""
    return (block + 1) * (num_kept // num_blocks) + min(block + 1, num_kept % num_blocks)


def index_bits(hidden_size: int) -> int:
    return max(1, (hidden_size - 1).bit_length())


def survivor_bits(hidden_size: int, num_kept: int) -> int:
    """Bits that say which elements survive: a mask, or a list of indices where it is smaller."""
    return min(hidden_size, num_kept * index_bits(hidden_size))


def max_packet_bits(hidden_size: int, settings: EncoderSettings) -> int:
    per_survivor = settings.num_blocks.bit_length() + settings.max_bits
    return (
        HEADER_BITS
        + BLOCK_BITS * settings.num_blocks
        + survivor_bits(hidden_size, settings.num_kept)
        + settings.num_kept * per_survivor
    )
