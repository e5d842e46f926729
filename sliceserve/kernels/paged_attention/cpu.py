"""Paged attention on the CPU: short queries a row at a time, long ones as matrix products."""

import numpy as np
import torch
from numba import njit
from torch.nn.functional import scaled_dot_product_attention

from sliceserve.kernels.elements import (
    SUM_IN_LANES,
    elements,
    exp,
    from_float,
    storage_scalar,
    to_float,
)
from sliceserve.kernels.paged_attention.batch import AttentionBatch

# Above it, gathering a sequence's context for matrix products costs less than the row loop.
_MAX_SHORT_QUERY = 16


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    out = torch.empty(q.shape, dtype=q.dtype)
    _attend_short_queries(
        storage_scalar(q.dtype),
        q.data_ptr(),
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        out.data_ptr(),
        q.stride(0),
        *q.shape[1:],
        *k_cache.shape[1:3],
        batch.query_starts.numpy(),
        batch.context_lens.numpy(),
        batch.block_tables.numpy(),
        batch.max_context_len,
        scale,
        window or batch.max_context_len,
    )
    if batch.max_query_len > _MAX_SHORT_QUERY:
        _attend_long_queries(q, k_cache, v_cache, batch, scale, window, out)
    return out


def _attend_long_queries(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int | None,
    out: torch.Tensor,
) -> None:
    block_size = k_cache.shape[1]
    starts = batch.query_starts.tolist()
    for i, context_len in enumerate(batch.context_lens.tolist()):
        rows = slice(starts[i], starts[i + 1])
        num_rows = rows.stop - rows.start
        if num_rows <= _MAX_SHORT_QUERY:
            continue
        blocks = batch.block_tables[i, : -(-context_len // block_size)]
        keys = k_cache[blocks].flatten(0, 1)[:context_len]  # (context, Hkv, D)
        values = v_cache[blocks].flatten(0, 1)[:context_len]
        whole = num_rows == context_len and (window is None or window >= context_len)
        attended = scaled_dot_product_attention(
            q[rows].transpose(0, 1).unsqueeze(0),
            keys.transpose(0, 1).unsqueeze(0),
            values.transpose(0, 1).unsqueeze(0),
            attn_mask=None if whole else _visible(num_rows, context_len, window),
            is_causal=whole,
            scale=scale,
            enable_gqa=True,
        )  # (1, H, n, D)
        out[rows] = attended[0].transpose(0, 1)


def _visible(num_rows: int, context_len: int, window: int | None) -> torch.Tensor:
    """(num_rows, context_len): which keys each of the context's last rows sees."""
    visible = torch.ones(num_rows, context_len, dtype=torch.bool)
    visible = visible.tril(context_len - num_rows)
    return visible if window is None else visible.triu(context_len - num_rows - window + 1)


@njit(cache=True, nogil=True, error_model="numpy")
def _attend_short_queries(
    like,
    p_q,
    p_k_cache,
    p_v_cache,
    p_out,
    q_stride,
    num_heads,
    head_dim,
    block_size,
    num_kv_heads,
    query_starts,
    context_lens,
    block_tables,
    max_context_len,
    scale,
    window,
):
    group = num_heads // num_kv_heads
    queries = np.empty((group, head_dim), np.float32)
    weights = np.empty((group, max_context_len), np.float32)
    totals = np.empty((group, head_dim), np.float32)
    # Where each visible key begins in the cache, its first head's elements.
    starts = np.empty(max_context_len, np.int64)
    for i in range(context_lens.size):
        num_rows = query_starts[i + 1] - query_starts[i]
        if num_rows > _MAX_SHORT_QUERY:
            continue
        for r in range(num_rows):
            t = query_starts[i] + r
            num_seen = context_lens[i] - num_rows + r + 1
            first = max(0, num_seen - window)
            num_keys = num_seen - first
            for c in range(num_keys):
                block, offset = divmod(first + c, block_size)
                slot = block_tables[i, block] * block_size + offset
                starts[c] = slot * num_kv_heads * head_dim
            for h in range(num_kv_heads):
                p_heads = t * q_stride + h * group * head_dim
                _load_queries(queries, p_q, p_heads, np.float32(scale), like)
                _score_keys(weights, queries, p_k_cache, h * head_dim, starts, num_keys, like)
                _softmax(weights, num_keys)
                _sum_values(totals, weights, p_v_cache, h * head_dim, starts, num_keys, like)
                _store_heads(totals, p_out, (t * num_heads + h * group) * head_dim, like)


@njit(cache=True, nogil=True, error_model="numpy")
def _load_queries(queries, p_q, offset, scale, like):
    group, head_dim = queries.shape
    for g in range(group):
        head = elements(p_q, offset + g * head_dim, head_dim, like)
        for d in range(head_dim):
            queries[g, d] = to_float(head[d]) * scale


@njit(cache=True, nogil=True, error_model="numpy", fastmath=SUM_IN_LANES)
def _score_keys(scores, queries, p_k_cache, offset, starts, num_keys, like):
    group, head_dim = queries.shape
    for c in range(num_keys):
        key = elements(p_k_cache, starts[c] + offset, head_dim, like)
        for g in range(group):
            score = np.float32(0)
            for d in range(head_dim):
                score += queries[g, d] * to_float(key[d])
            scores[g, c] = score


@njit(cache=True, nogil=True, error_model="numpy", fastmath=SUM_IN_LANES)
def _softmax(scores, num_keys):
    for g in range(scores.shape[0]):
        highest = scores[g, 0]
        for c in range(num_keys):
            highest = scores[g, c] if scores[g, c] > highest else highest
        total = np.float32(0)
        for c in range(num_keys):
            scores[g, c] = exp(scores[g, c] - highest)
            total += scores[g, c]
        for c in range(num_keys):
            scores[g, c] /= total


@njit(cache=True, nogil=True, error_model="numpy", fastmath=SUM_IN_LANES)
def _sum_values(totals, weights, p_v_cache, offset, starts, num_keys, like):
    group, head_dim = totals.shape
    totals[:] = 0
    for c in range(num_keys):
        value = elements(p_v_cache, starts[c] + offset, head_dim, like)
        for g in range(group):
            weight = weights[g, c]
            for d in range(head_dim):
                totals[g, d] += weight * to_float(value[d])


@njit(cache=True, nogil=True, error_model="numpy")
def _store_heads(totals, p_out, offset, like):
    group, head_dim = totals.shape
    for g in range(group):
        head = elements(p_out, offset + g * head_dim, head_dim, like)
        for d in range(head_dim):
            head[d] = from_float(totals[g, d], like)
