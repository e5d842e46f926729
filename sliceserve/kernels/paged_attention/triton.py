"""Paged attention on the GPU: one program attends a tile of queries to one KV head's keys.

A tile holds the query heads that share the KV head, of several consecutive rows, so that decode
reads each key once for its whole group. Softmax is computed online over tiles of keys, as in
FlashAttention-2 (Dao, 2023, arXiv 2307.08691).
"""

import torch
import triton
import triton.language as tl

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
    num_rows, num_heads, head_dim = q.shape
    block_size, num_kv_heads = k_cache.shape[1:3]
    num_sequences = batch.context_lens.shape[0]
    if num_rows == 0 or num_sequences == 0:
        return out
    group = num_heads // num_kv_heads
    block_dim = max(16, triton.next_power_of_2(head_dim))
    head_bytes = block_dim * q.element_size()
    # 16 is the least that a matrix product takes; larger tiles must fit in shared memory.
    block_queries = 16 if batch.max_query_len == 1 or head_bytes > 256 else 64
    block_queries = max(block_queries, triton.next_power_of_2(group))
    block_keys = min(64, max(16, 16384 // head_bytes))
    rows_per_tile = block_queries // group
    # Each sequence wastes less than one tile, so this many cover any split of the rows.
    num_tiles = num_rows // rows_per_tile + num_sequences
    _paged_attention_kernel[(num_tiles, num_kv_heads)](
        q,
        k_cache,
        v_cache,
        out,
        batch.query_starts,
        batch.context_lens,
        batch.block_tables,
        q.stride(0),
        batch.block_tables.stride(0),
        num_sequences,
        scale * 1.4426950408889634,  # log2 e: the softmax is taken to base 2
        0 if window is None else window,
        block_size,
        num_kv_heads,
        HEAD_DIM=head_dim,
        GROUP=group,
        ROWS_PER_TILE=rows_per_tile,
        WINDOWED=window is not None,
        BLOCK_QUERIES=block_queries,
        BLOCK_KEYS=block_keys,
        BLOCK_DIM=block_dim,
        num_stages=2,
    )
    return out


@triton.jit
def _find_sequence(p_query_starts, num_sequences, i_tile, ROWS_PER_TILE: tl.constexpr):
    """The last sequence whose tiles begin at or before ``i_tile``.

    Sequence s owns the tiles from query_starts[s] // ROWS_PER_TILE + s on.
    """
    low = 0
    high = num_sequences
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(p_query_starts + middle) // ROWS_PER_TILE + middle <= i_tile:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def _paged_attention_kernel(
    p_q,
    p_k_cache,
    p_v_cache,
    p_out,
    p_query_starts,
    p_context_lens,
    p_block_tables,
    q_stride,
    table_stride,
    num_sequences,
    scale_log2,
    window,
    block_size,
    num_kv_heads,
    HEAD_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS_PER_TILE: tl.constexpr,
    WINDOWED: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    i_tile = tl.program_id(0)
    i_kv_head = tl.program_id(1)
    i_sequence = _find_sequence(p_query_starts, num_sequences, i_tile, ROWS_PER_TILE)
    query_start = tl.load(p_query_starts + i_sequence)
    num_rows = tl.load(p_query_starts + i_sequence + 1) - query_start
    first_row = (i_tile - query_start // ROWS_PER_TILE - i_sequence) * ROWS_PER_TILE
    if first_row >= num_rows:
        return
    context_len = tl.load(p_context_lens + i_sequence)

    # Lane r of the tile is head r % GROUP of row first_row + r // GROUP.
    o_lane = tl.arange(0, BLOCK_QUERIES)
    o_row = first_row + o_lane // GROUP
    o_head = i_kv_head * GROUP + o_lane % GROUP
    o_dim = tl.arange(0, BLOCK_DIM)
    m_row = (o_lane < ROWS_PER_TILE * GROUP) & (o_row < num_rows)
    m_dim = o_dim < HEAD_DIM
    m_query = m_row[:, None] & m_dim[None, :]
    o_token = (query_start + o_row).to(tl.int64)
    o_query = (o_token * q_stride + o_head * HEAD_DIM)[:, None] + o_dim[None, :]
    b_q = tl.load(p_q + o_query, mask=m_query, other=0.0)  # (queries, dim)

    o_position = context_len - num_rows + o_row
    last_row = tl.minimum(first_row + ROWS_PER_TILE, num_rows) - 1
    keys_end = context_len - num_rows + last_row + 1
    keys_start = 0
    if WINDOWED:
        keys_start = tl.maximum(0, context_len - num_rows + first_row - window + 1)

    b_highest = tl.full((BLOCK_QUERIES,), float("-inf"), tl.float32)
    b_total = tl.zeros((BLOCK_QUERIES,), tl.float32)
    b_out = tl.zeros((BLOCK_QUERIES, BLOCK_DIM), tl.float32)
    p_table = p_block_tables + i_sequence.to(tl.int64) * table_stride
    for start in range(keys_start, keys_end, BLOCK_KEYS):
        o_key = start + tl.arange(0, BLOCK_KEYS)
        m_key = o_key < keys_end
        b_block = tl.load(p_table + o_key // block_size, mask=m_key, other=0).to(tl.int64)
        o_slot = b_block * block_size + o_key % block_size
        o_cache = ((o_slot * num_kv_heads + i_kv_head) * HEAD_DIM)[:, None] + o_dim[None, :]
        m_cache = m_key[:, None] & m_dim[None, :]
        b_k = tl.load(p_k_cache + o_cache, mask=m_cache, other=0.0)  # (keys, dim)
        b_v = tl.load(p_v_cache + o_cache, mask=m_cache, other=0.0)

        b_scores = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale_log2
        m_visible = m_key[None, :] & (o_key[None, :] <= o_position[:, None])
        if WINDOWED:
            m_visible = m_visible & (o_key[None, :] > o_position[:, None] - window)
        b_scores = tl.where(m_visible, b_scores, float("-inf"))

        b_new_highest = tl.maximum(b_highest, tl.max(b_scores, axis=1))
        # A row that has seen no key yet has highest -inf, and -inf - -inf is no number.
        b_base = tl.where(b_new_highest == float("-inf"), 0.0, b_new_highest)
        b_weights = tl.exp2(b_scores - b_base[:, None])
        b_decay = tl.exp2(b_highest - b_base)
        b_total = b_total * b_decay + tl.sum(b_weights, axis=1)
        b_out = b_out * b_decay[:, None]
        b_out += tl.dot(b_weights.to(b_v.dtype), b_v, input_precision="ieee")
        b_highest = b_new_highest

    # Lanes of no row may have seen no key.
    b_out = b_out / tl.where(b_total > 0, b_total, 1.0)[:, None]
    num_heads = num_kv_heads * GROUP
    o_out = ((o_token * num_heads + o_head) * HEAD_DIM)[:, None] + o_dim[None, :]
    tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=m_query)
