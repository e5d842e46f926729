import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from sliceserve.kernels.paged_attention import AttentionBatch, flash, reference

MIXTURES = {
    "decode": [(1, 1), (1, 17), (1, 63)],
    "prefill": [(63, 63), (1, 1)],
    "chunk": [(5, 40), (20, 30)],
    "mixture": [(1, 33), (40, 40), (0, 0), (3, 20), (18, 50), (1, 16)],
}


def make_call(
    sequences: list[tuple[int, int]],
    *,
    num_heads: int = 3,
    num_kv_heads: int = 1,
    head_dim: int = 16,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, AttentionBatch, float]:
    """Arguments for sequences of (rows, context): caches hold NaN in every unused slot, block
    tables are shuffled and end in block ids out of range, q is a view of a fused projection."""
    num_blocks = [-(-context // block_size) for _, context in sequences]
    free = torch.randperm(sum(num_blocks) + 3).tolist()
    tables = torch.full((len(sequences), max(num_blocks) + 1), 2**30, dtype=torch.int32)
    caches = torch.full((2, len(free), block_size, num_kv_heads, head_dim), float("nan"))
    for i, (_, context) in enumerate(sequences):
        for j in range(num_blocks[i]):
            tables[i, j] = block = free.pop()
            filled = min(block_size, context - j * block_size)
            caches[:, block, :filled] = torch.randn(2, filled, num_kv_heads, head_dim)

    rows, contexts = zip(*sequences, strict=True)
    qkv = torch.randn(sum(rows), (num_heads + 2 * num_kv_heads) * head_dim).to(device, dtype)
    q = qkv[:, : num_heads * head_dim].unflatten(1, (num_heads, head_dim))
    starts = torch.tensor([0, *rows]).cumsum(0)
    batch = AttentionBatch(
        query_starts=starts.to(device, torch.int32),
        context_lens=torch.tensor(contexts, dtype=torch.int32, device=device),
        block_tables=tables.to(device),
        max_query_len=max(rows),
        max_context_len=max(contexts),
    )
    k_cache, v_cache = caches.to(device, dtype)
    return q, k_cache, v_cache, batch, head_dim**-0.5


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("window", [None, 1, 7])
def test_mixtures(backend, poison_empty, relative_error, mixture, window):
    call = make_call(MIXTURES[mixture], device=backend.device)
    out = backend.load("paged_attention").paged_attention(*call, window)
    assert out.is_contiguous()
    assert relative_error(out, reference.paged_attention(*call, window)) < 1e-6


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "block_size"),
    [(2, 2, 16, 8), (6, 2, 20, 8), (3, 1, 100, 16), (9, 3, 64, 16), (2, 1, 256, 16)],
)
def test_shapes(
    backend,
    poison_empty,
    dtype_and_tolerance,
    relative_error,
    num_heads,
    num_kv_heads,
    head_dim,
    block_size,
):
    dtype, tolerance = dtype_and_tolerance
    call = make_call(
        [(1, 33), (19, 27)],
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        dtype=dtype,
        device=backend.device,
    )
    out = backend.load("paged_attention").paged_attention(*call)
    assert relative_error(out, reference.paged_attention(*call)) < tolerance


def test_a_row_of_a_batch_is_bit_for_bit_the_row_alone(backend):
    q, k_cache, v_cache, batch, scale = make_call([(1, 33), (1, 5), (1, 48)], device=backend.device)
    paged_attention = backend.load("paged_attention").paged_attention
    together = paged_attention(q, k_cache, v_cache, batch, scale)
    for i, context_len in enumerate(batch.context_lens.tolist()):
        alone = AttentionBatch(
            query_starts=batch.query_starts[:2],
            context_lens=batch.context_lens[i : i + 1],
            block_tables=batch.block_tables[i : i + 1],
            max_query_len=1,
            max_context_len=context_len,
        )
        out = paged_attention(q[i : i + 1], k_cache, v_cache, alone, scale)
        assert torch.equal(out, together[i : i + 1])


def test_bounds_above_the_longest_sequence_change_nothing(backend):
    q, k_cache, v_cache, batch, scale = make_call([(3, 33), (1, 5)], device=backend.device)
    paged_attention = backend.load("paged_attention").paged_attention
    loose = replace(batch, max_query_len=16, max_context_len=4096)
    torch.testing.assert_close(
        paged_attention(q, k_cache, v_cache, loose, scale),
        paged_attention(q, k_cache, v_cache, batch, scale),
    )


def test_no_rows(backend):
    call = make_call([(0, 0)], device=backend.device)
    assert backend.load("paged_attention").paged_attention(*call).shape == (0, 3, 16)


def test_large_scores_do_not_overflow(backend, relative_error):
    q, k_cache, v_cache, batch, scale = make_call([(1, 40), (20, 20)], device=backend.device)
    call = (1000 * q, k_cache, v_cache, batch, scale)
    out = backend.load("paged_attention").paged_attention(*call)
    assert relative_error(out, reference.paged_attention(*call)) < 1e-3


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("mixture", ["decode", "mixture"])
def test_flash_attn_is_asked_for_the_same_attention(monkeypatch, relative_error, mixture, window):
    """flash-attn cannot run here: a stand-in of the same signatures answers by the reference."""
    call = make_call(MIXTURES[mixture])
    batch = call[3]

    def varlen(q, k, v, starts, key_starts, max_q, max_k, *, block_table, **settings):
        lens = key_starts.diff().int()
        asked = AttentionBatch(starts, lens, block_table, max_q, max_k)
        return attend(q, k, v, asked, **settings)

    def with_kvcache(q, k, v, *, cache_seqlens, block_table, **settings):
        starts = torch.arange(q.shape[0] + 1, dtype=torch.int32)
        asked = AttentionBatch(starts, cache_seqlens, block_table, 1, batch.max_context_len)
        return attend(q.squeeze(1), k, v, asked, **settings).unsqueeze(1)

    def attend(q, k, v, asked, *, softmax_scale, causal, window_size):
        assert causal and window_size[1] == 0
        keys_seen = None if window_size[0] == -1 else window_size[0] + 1
        return reference.paged_attention(q, k, v, asked, softmax_scale, keys_seen)

    stand_in = ModuleType("flash_attn")
    stand_in.flash_attn_varlen_func = varlen
    stand_in.flash_attn_with_kvcache = with_kvcache
    monkeypatch.setitem(sys.modules, "flash_attn", stand_in)
    out = flash.paged_attention(*call, window)
    assert relative_error(out, reference.paged_attention(*call, window)) == 0


def test_flash_attn_does_not_fit_the_cpu():
    q, k_cache = torch.empty(1, 2, 64, dtype=torch.bfloat16), torch.empty(4, 256, 2, 64)
    assert not flash.flash_fits(q, k_cache)
