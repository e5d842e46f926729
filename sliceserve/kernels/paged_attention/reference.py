"""Paged causal attention in plain float32 torch, one sequence at a time."""

import torch

from sliceserve.kernels.paged_attention.batch import AttentionBatch


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    block_size, num_kv_heads = k_cache.shape[1:3]
    group = q.shape[1] // num_kv_heads
    starts = batch.query_starts.tolist()
    for i, context_len in enumerate(batch.context_lens.tolist()):
        rows = slice(starts[i], starts[i + 1])
        blocks = batch.block_tables[i, : -(-context_len // block_size)].long()
        keys = k_cache[blocks].flatten(0, 1)[:context_len].float()  # (context, Hkv, D)
        values = v_cache[blocks].flatten(0, 1)[:context_len].float()
        keys = keys.repeat_interleave(group, dim=1)  # (context, H, D)
        values = values.repeat_interleave(group, dim=1)

        key_positions = torch.arange(context_len, device=q.device)
        row_positions = key_positions[context_len - (rows.stop - rows.start) :].unsqueeze(1)
        visible = key_positions <= row_positions  # (n, context)
        if window is not None:
            visible &= key_positions > row_positions - window

        scores = torch.einsum("nhd,chd->hnc", q[rows].float(), keys) * scale
        weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
        out[rows] = torch.einsum("hnc,chd->nhd", weights, values).to(q.dtype)
    return out
