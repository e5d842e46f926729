"""Vectors times a matrix, each as if it were alone.

A library's product of many rows adds up in another order than that of one row, so a row's last
bits depend on its neighbours. A codec rounds such products into packets, whose bytes must not.
"""

import torch

from sliceserve.kernels.row_products import cpu


def row_products(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """(T, K) · (K, N) → (T, N), all float32 and contiguous; ``matrix`` (K,) is a diagonal one.

    Row t of the result has the same bits whatever the other rows are, and how many. Devices may
    differ from each other by rounding.
    """
    if matrix.dim() == 1:
        return rows * matrix
    if rows.is_cuda:
        from sliceserve.kernels.row_products import triton

        return triton.row_products(rows, matrix)
    return cpu.row_products(rows, matrix)
