"""Row products on the CPU: every sum runs over the rows of the matrix in their order."""

import numpy as np
import torch
from numba import njit

from sliceserve.kernels.elements import elements

# Columns that are finished before the next are begun: their sums stay in the first-level cache, and
# a row of the matrix is read in stretches long enough for the hardware to fetch ahead.
_TILE = 1024
_F32 = np.float32(0)


def row_products(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    out = torch.empty(rows.shape[0], matrix.shape[1])
    multiply_rows(rows.numpy(), matrix.data_ptr(), out.numpy())
    return out


@njit(cache=True, nogil=True, fastmath={"contract"})
def multiply_rows(rows, matrix, out):
    num_rows, num_terms = rows.shape
    num_columns = out.shape[1]
    sums = np.empty(_TILE, np.float32)
    for first in range(0, num_columns, _TILE):
        width = min(_TILE, num_columns - first)
        for t in range(num_rows):
            sums[:] = 0
            for i in range(0, num_terms - 3, 4):
                _add_four(rows[t], i, matrix, i * num_columns + first, num_columns, sums[:width])
            for i in range(num_terms - num_terms % 4, num_terms):
                term = elements(matrix, i * num_columns + first, width, _F32)
                for j in range(width):
                    sums[j] += rows[t, i] * term[j]
            out[t, first : first + width] = sums[:width]


@njit(forceinline=True, fastmath={"contract"})
def _add_four(row, i, matrix, offset, stride, sums):
    """Four terms at a time: the sums are then read and written a quarter as often."""
    p, q, r, s = row[i], row[i + 1], row[i + 2], row[i + 3]
    a = elements(matrix, offset, sums.size, _F32)
    b = elements(matrix, offset + stride, sums.size, _F32)
    c = elements(matrix, offset + 2 * stride, sums.size, _F32)
    d = elements(matrix, offset + 3 * stride, sums.size, _F32)
    for j in range(sums.size):
        sums[j] = (((sums[j] + p * a[j]) + q * b[j]) + r * c[j]) + s * d[j]
