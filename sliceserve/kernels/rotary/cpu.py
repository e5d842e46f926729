"""Rotary position embedding on the CPU, a head at a time."""

import torch
from numba import njit

from sliceserve.kernels.elements import elements, from_float, storage_scalar, to_float


def apply_rotary(
    q: torch.Tensor, k: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor
) -> None:
    like = storage_scalar(q.dtype)
    tables = (cos_sin.numpy(), positions.numpy())
    head_dim = q.shape[2]
    _rotate(like, q.data_ptr(), q.stride(0), q.shape[1], head_dim, *tables)
    _rotate(like, k.data_ptr(), k.stride(0), k.shape[1], head_dim, *tables)


@njit(cache=True, nogil=True, error_model="numpy")
def _rotate(like, p_x, stride, num_heads, head_dim, cos_sin, positions):
    half = cos_sin.shape[1] // 2
    for t in range(positions.size):
        cos = cos_sin[positions[t], :half]
        sin = cos_sin[positions[t], half:]
        for h in range(num_heads):
            offset = t * stride + h * head_dim
            first = elements(p_x, offset, half, like)
            second = elements(p_x, offset + half, half, like)
            for i in range(half):
                a = to_float(first[i])
                b = to_float(second[i])
                first[i] = from_float(a * cos[i] - b * sin[i], like)
                second[i] = from_float(b * cos[i] + a * sin[i], like)
