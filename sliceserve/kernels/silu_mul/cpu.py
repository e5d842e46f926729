"""Gated SiLU on the CPU."""

import numpy as np
import torch
from numba import njit

from sliceserve.kernels.elements import elements, exp, from_float, storage_scalar, to_float


def silu_mul(x: torch.Tensor) -> torch.Tensor:
    num_rows, width = x.shape[0], x.shape[1] // 2
    y = torch.empty((num_rows, width), dtype=x.dtype)
    _silu_mul(storage_scalar(x.dtype), x.data_ptr(), y.data_ptr(), num_rows, width)
    return y


@njit(cache=True, nogil=True, error_model="numpy")
def _silu_mul(like, p_x, p_y, num_rows, width):
    for t in range(num_rows):
        gates = elements(p_x, 2 * t * width, width, like)
        ups = elements(p_x, (2 * t + 1) * width, width, like)
        y = elements(p_y, t * width, width, like)
        for i in range(width):
            gate = to_float(gates[i])
            y[i] = from_float(gate / (np.float32(1) + exp(-gate)) * to_float(ups[i]), like)
