"""RMS norm on the CPU, a row at a time."""

import numpy as np
import torch
from numba import njit

from sliceserve.kernels.elements import (
    SUM_IN_LANES,
    elements,
    from_float,
    storage_scalar,
    to_float,
)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    y = torch.empty(x.shape, dtype=x.dtype)
    like = storage_scalar(x.dtype)
    width = x.shape[-1]
    per_row = 1 if x.dim() == 2 else x.shape[1]
    addresses = (x.data_ptr(), weight.data_ptr(), y.data_ptr())
    _rms_norm(like, *addresses, x.shape[0], x.stride(0), per_row, width, eps)
    return y


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    y = torch.empty(x.shape, dtype=x.dtype)
    like = storage_scalar(x.dtype)
    addresses = (x.data_ptr(), residual.data_ptr(), weight.data_ptr(), y.data_ptr())
    _add_rms_norm(like, *addresses, *x.shape, x.stride(0), residual.stride(0), eps)
    return y


@njit(cache=True, nogil=True, error_model="numpy", fastmath=SUM_IN_LANES)
def _normalise(x, weight, y, eps, like):
    total = np.float32(0)
    for i in range(x.size):
        value = to_float(x[i])
        total += value * value
    scale = np.float32(1) / np.sqrt(total / np.float32(x.size) + np.float32(eps))
    for i in range(x.size):
        normalised = to_float(from_float(to_float(x[i]) * scale, like))
        y[i] = from_float(normalised * to_float(weight[i]), like)


@njit(cache=True, nogil=True, error_model="numpy")
def _rms_norm(like, p_x, p_weight, p_y, num_rows, x_stride, per_row, width, eps):
    weight = elements(p_weight, 0, width, like)
    for t in range(num_rows):
        for i in range(per_row):
            x = elements(p_x, t * x_stride + i * width, width, like)
            y = elements(p_y, (t * per_row + i) * width, width, like)
            _normalise(x, weight, y, eps, like)


@njit(cache=True, nogil=True, error_model="numpy")
def _add_rms_norm(
    like, p_x, p_residual, p_weight, p_y, num_rows, width, x_stride, residual_stride, eps
):
    weight = elements(p_weight, 0, width, like)
    for t in range(num_rows):
        x = elements(p_x, t * x_stride, width, like)
        residual = elements(p_residual, t * residual_stride, width, like)
        y = elements(p_y, t * width, width, like)
        for i in range(width):
            residual[i] = from_float(to_float(residual[i]) + to_float(x[i]), like)
        _normalise(residual, weight, y, eps, like)
