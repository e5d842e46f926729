"""RMS norm on the GPU: one program normalises one vector."""

import torch
import triton
import triton.language as tl


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return _launch(x, None, weight, eps)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    return _launch(x, residual, weight, eps)


def _launch(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel() == 0:
        return y
    width = x.shape[-1]
    per_row = 1 if x.dim() == 2 else x.shape[1]
    _rms_norm_kernel[(x.shape[0], per_row)](
        x,
        residual,
        weight,
        y,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        width,
        eps,
        BLOCK=triton.next_power_of_2(width),
    )
    return y


@triton.jit
def _rms_norm_kernel(
    p_x,
    p_residual,
    p_weight,
    p_y,
    x_stride,
    residual_stride,
    width,
    eps,
    BLOCK: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    i_vector = tl.program_id(1)
    dtype = p_y.dtype.element_ty
    o_width = tl.arange(0, BLOCK)
    m_width = o_width < width
    o_in_row = i_vector * width + o_width

    b_x = tl.load(p_x + i_row * x_stride + o_in_row, mask=m_width, other=0.0).to(tl.float32)
    if p_residual is not None:
        p_sum = p_residual + i_row * residual_stride + o_in_row
        b_sum = (b_x + tl.load(p_sum, mask=m_width, other=0.0).to(tl.float32)).to(dtype)
        tl.store(p_sum, b_sum, mask=m_width)
        b_x = b_sum.to(tl.float32)

    b_scale = tl.rsqrt(tl.sum(b_x * b_x, axis=0) / width + eps)
    b_normalised = (b_x * b_scale).to(dtype).to(tl.float32)
    b_weight = tl.load(p_weight + o_width, mask=m_width, other=0.0).to(tl.float32)
    p_out = p_y + i_row * tl.num_programs(1) * width + o_in_row
    tl.store(p_out, (b_normalised * b_weight).to(dtype), mask=m_width)
