"""Attention over a paged key-value cache (Kwon et al., 2023, arXiv 2309.06180)."""

import torch

from sliceserve.kernels.paged_attention import cpu, flash
from sliceserve.kernels.paged_attention.batch import AttentionBatch
from sliceserve.kernels.paged_attention.flash import flash_fits

__all__ = ["AttentionBatch", "paged_attention"]


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """softmax(scale · q kᵀ) v with a causal mask, for prefill and decode rows in one call.

    q: (T, H, D), float32, bfloat16 or float16; each row of T contiguous, rows any stride apart.
    k_cache, v_cache: (num_blocks, block_size, Hkv, D) contiguous, of q's dtype; they already hold
    the keys and values of this call's rows. H is a multiple of Hkv: query heads
    ``[g·H/Hkv, (g + 1)·H/Hkv)`` share KV head g. ``window`` limits the row at position p to keys
    ``[p - window + 1, p]``; None is no limit.

    On a GPU, flash-attn computes it where ``flash.flash_fits``, else the Triton kernel.

    Returns (T, H, D), contiguous, of q's dtype. Rows of no sequence in ``batch`` are undefined.
    """
    if not q.is_cuda:
        return cpu.paged_attention(q, k_cache, v_cache, batch, scale, window)
    if flash_fits(q, k_cache):
        return flash.paged_attention(q, k_cache, v_cache, batch, scale, window)
    from sliceserve.kernels.paged_attention import triton

    return triton.paged_attention(q, k_cache, v_cache, batch, scale, window)
