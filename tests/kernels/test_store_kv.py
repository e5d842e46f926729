import pytest
import torch

from sliceserve.kernels.store_kv import reference


@pytest.mark.parametrize(
    ("num_rows", "block_size", "num_kv_heads", "head_dim"),
    [(1, 16, 3, 64), (63, 8, 1, 20), (5, 3, 3, 7), (0, 16, 1, 16)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_writes_the_named_slots_and_no_other(
    backend, num_rows, block_size, num_kv_heads, head_dim, dtype
):
    width = num_kv_heads * head_dim
    qkv = torch.randn(num_rows, 4 * width).to(backend.device, dtype)
    k, v = qkv[:, width : 3 * width].view(num_rows, 2, num_kv_heads, head_dim).unbind(1)
    caches = torch.randn(2, 25, block_size, num_kv_heads, head_dim).to(backend.device, dtype)
    expected = caches.clone()
    slots = torch.randperm(25 * block_size)[:num_rows].to(backend.device)
    slots[::4] = -1
    backend.load("store_kv").store_kv(k, v, *caches, slots)
    reference.store_kv(k, v, *expected, slots)
    assert torch.equal(caches, expected)
