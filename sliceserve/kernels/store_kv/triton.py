"""Writing keys and values to a paged cache on the GPU: one program copies one row."""

import torch
import triton
import triton.language as tl


def store_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    if k.shape[0] == 0:
        return
    width = k.shape[1] * k.shape[2]
    _store_kv_kernel[(k.shape[0],)](
        k,
        v,
        k_cache,
        v_cache,
        slots,
        k.stride(0),
        v.stride(0),
        width,
        BLOCK=triton.next_power_of_2(width),
    )


@triton.jit
def _store_kv_kernel(
    p_k, p_v, p_k_cache, p_v_cache, p_slots, k_stride, v_stride, width, BLOCK: tl.constexpr
):
    i_row = tl.program_id(0).to(tl.int64)
    slot = tl.load(p_slots + i_row)
    if slot < 0:
        return
    o_width = tl.arange(0, BLOCK)
    mask = o_width < width
    b_k = tl.load(p_k + i_row * k_stride + o_width, mask=mask)
    b_v = tl.load(p_v + i_row * v_stride + o_width, mask=mask)
    tl.store(p_k_cache + slot * width + o_width, b_k, mask=mask)
    tl.store(p_v_cache + slot * width + o_width, b_v, mask=mask)
