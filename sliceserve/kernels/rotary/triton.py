"""Rotary position embedding on the GPU: one program rotates all heads of one row."""

import torch
import triton
import triton.language as tl


def apply_rotary(
    q: torch.Tensor, k: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor
) -> None:
    if q.shape[0] == 0:
        return
    num_heads, num_kv_heads, half = q.shape[1], k.shape[1], cos_sin.shape[1] // 2
    _rotary_kernel[(q.shape[0],)](
        q,
        k,
        cos_sin,
        positions,
        q.stride(0),
        k.stride(0),
        num_heads,
        num_kv_heads,
        half,
        HEAD_DIM=q.shape[2],
        BLOCK_Q_HEADS=triton.next_power_of_2(num_heads),
        BLOCK_KV_HEADS=triton.next_power_of_2(num_kv_heads),
        BLOCK_HALF=triton.next_power_of_2(half),
    )


@triton.jit
def _rotate_heads(
    p_row, num_heads, b_cos, b_sin, o_half, half, HEAD_DIM, BLOCK_HEADS: tl.constexpr
):
    o_head = tl.arange(0, BLOCK_HEADS)
    mask = (o_head[:, None] < num_heads) & (o_half[None, :] < half)
    p_first = p_row + o_head[:, None] * HEAD_DIM + o_half[None, :]
    p_second = p_first + half
    b_first = tl.load(p_first, mask=mask, other=0.0).to(tl.float32)  # (heads, half)
    b_second = tl.load(p_second, mask=mask, other=0.0).to(tl.float32)
    dtype = p_row.dtype.element_ty
    tl.store(p_first, (b_first * b_cos - b_second * b_sin).to(dtype), mask=mask)
    tl.store(p_second, (b_second * b_cos + b_first * b_sin).to(dtype), mask=mask)


@triton.jit
def _rotary_kernel(
    p_q,
    p_k,
    p_cos_sin,
    p_positions,
    q_stride,
    k_stride,
    num_heads,
    num_kv_heads,
    half,
    HEAD_DIM: tl.constexpr,
    BLOCK_Q_HEADS: tl.constexpr,
    BLOCK_KV_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    o_half = tl.arange(0, BLOCK_HALF)
    p_cos = p_cos_sin + tl.load(p_positions + i_row) * 2 * half + o_half
    b_cos = tl.load(p_cos, mask=o_half < half, other=0.0)[None, :]
    b_sin = tl.load(p_cos + half, mask=o_half < half, other=0.0)[None, :]
    p_q_row = p_q + i_row * q_stride
    p_k_row = p_k + i_row * k_stride
    _rotate_heads(p_q_row, num_heads, b_cos, b_sin, o_half, half, HEAD_DIM, BLOCK_Q_HEADS)
    _rotate_heads(p_k_row, num_kv_heads, b_cos, b_sin, o_half, half, HEAD_DIM, BLOCK_KV_HEADS)
