"""RMS norm in plain float32 torch."""

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    x_f32 = x.float()
    scale = torch.rsqrt(x_f32.square().mean(dim=-1, keepdim=True) + eps)  # (..., 1)
    normalised = (x_f32 * scale).to(x.dtype)
    return (normalised * weight).to(x.dtype)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    residual.copy_(residual.float() + x.float())
    return rms_norm(residual, weight, eps)
