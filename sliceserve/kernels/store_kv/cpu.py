"""Writing keys and values to a paged cache on the CPU."""

import torch
from numba import njit

from sliceserve.kernels.elements import elements, storage_scalar


def store_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    like = storage_scalar(k.dtype)
    width = k.shape[1] * k.shape[2]
    _store(like, k.data_ptr(), k.stride(0), k_cache.data_ptr(), width, slots.numpy())
    _store(like, v.data_ptr(), v.stride(0), v_cache.data_ptr(), width, slots.numpy())


@njit(cache=True, nogil=True, error_model="numpy")
def _store(like, p_x, stride, p_cache, width, slots):
    for t in range(slots.size):
        if slots[t] >= 0:
            row = elements(p_x, t * stride, width, like)
            elements(p_cache, slots[t] * width, width, like)[:] = row
