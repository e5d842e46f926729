"""Paged attention by the flash-attn package (version 2), where it is installed and fits."""

from importlib.util import find_spec

import torch

from sliceserve.kernels.paged_attention.batch import AttentionBatch

# flash-attn reads pages in tiles of this many keys.
_PAGE_MULTIPLE = 256


def flash_fits(q: torch.Tensor, k_cache: torch.Tensor) -> bool:
    """Whether ``paged_attention`` here can take this call: half precision on a CUDA device, heads
    of a multiple of 8 up to 256, blocks of a multiple of 256, and flash-attn installed."""
    return (
        q.is_cuda
        and q.dtype in (torch.float16, torch.bfloat16)
        and q.shape[2] % 8 == 0
        and q.shape[2] <= 256
        and k_cache.shape[1] % _PAGE_MULTIPLE == 0
        and find_spec("flash_attn") is not None
    )


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    from flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache

    settings = {
        "softmax_scale": scale,
        "causal": True,
        # flash-attn counts the keys before a row; -1 is no limit.
        "window_size": (-1 if window is None else window - 1, 0),
        "block_table": batch.block_tables,
    }
    num_rows = q.shape[0]
    if batch.max_query_len == 1 and num_rows == batch.context_lens.shape[0]:
        # Decode: splits long contexts over the device.
        out = flash_attn_with_kvcache(
            q.unsqueeze(1), k_cache, v_cache, cache_seqlens=batch.context_lens, **settings
        )
        return out.squeeze(1)
    key_starts = torch.zeros_like(batch.query_starts)
    torch.cumsum(batch.context_lens, dim=0, out=key_starts[1:])
    return flash_attn_varlen_func(
        q,
        k_cache,
        v_cache,
        batch.query_starts,
        key_starts,
        batch.max_query_len,
        batch.max_context_len,
        **settings,
    )
