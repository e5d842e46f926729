"""The packet of the rANS baseline: an asymmetric grid's codes as a sparse matrix, entropy-coded.

A row x of d elements lies on a grid of L levels with a step s and a zero point z: the code of x is
clamp(round(x / s) + z, 0, L − 1), its value (code − z) · s. s is (max − min) / (L − 1), zero being
between them, rounded up to bfloat16, and z the code of zero, so that elements near zero are z and
stay out of the sparse matrix.

The codes are laid out in rows of C elements, the last row as short as need be, C being the one of
``ROW_LENGTHS`` that makes the packet smallest: entropy times length, and the tables. The matrix is
stored as CSR: the codes other than z, their columns, and how many each row has.

    byte 0      L − 1
    byte 1      z
    the rest    one rANS stream (``kernels.rans``), whose payload is s as the bits of bfloat16

The stream's symbols, F(w) being w bits of which all values are alike:

    C's place in ``ROW_LENGTHS``, F(4), 0 if there is nothing but zeros
    the most elements that a row of the matrix has, m, F(9); if it is 0, nothing follows
    three tables: row counts 0 to m, columns 0 to min(C, d) − 1, codes 0 to L − 1 without z
    each row's count, then each element's column, ascending within a row, then each one's code

A table gives each of its symbols one of the 16 ``WEIGHTS``: per symbol a bit F(1), whether the
weight is the one of the symbol before (0 before the first), and if not, its place, F(4). The
weights normalised to 4096 (``rans.normalise``) are the symbols' frequencies.
"""

import math

ROW_LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
WEIGHTS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192)
MAX_COUNT_BITS = 9
HEADER_BYTES = 2

MAX_LEVELS = 256
MAX_HIDDEN_SIZE = 16384

# A step, as the bits of bfloat16, is zero or at least 2^-100: a subnormal number divided by it is
# then as good as zero, so that a thread that flushes those writes the same bytes.
MIN_STEP = (127 - 100) << 7


class GridError(ValueError):
    """A row that cannot be encoded, or a packet that no encoder wrote; ``index`` of the batch."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


def max_step(num_levels: int) -> int:
    """The largest step, as the bits of bfloat16, of which L − 1 are finite in float32."""
    largest = (2 - 2**-23) * 2.0**127 / (num_levels - 1)
    mantissa, exponent = math.frexp(largest)
    return (exponent + 126) << 7 | int(mantissa * 256) & 0x7F
