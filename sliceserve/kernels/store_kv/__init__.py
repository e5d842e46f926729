"""Writing new keys and values to the paged cache."""

import torch

from sliceserve.kernels.store_kv import cpu


def store_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """Copy row t of k and v to slot ``slots[t]`` of the caches.

    k, v: (T, Hkv, D); each row of T contiguous, rows any stride apart. k_cache, v_cache:
    (num_blocks, block_size, Hkv, D) contiguous, of the dtype of k and v. slots: (T,) int64,
    block id · block_size + offset in the block, each at most once; a negative slot skips its row.
    """
    if k.is_cuda:
        from sliceserve.kernels.store_kv import triton

        triton.store_kv(k, v, k_cache, v_cache, slots)
    else:
        cpu.store_kv(k, v, k_cache, v_cache, slots)
