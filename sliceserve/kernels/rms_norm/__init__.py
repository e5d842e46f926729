"""Root mean square normalisation (Zhang and Sennrich, 2019, arXiv 1910.07467)."""

import torch

from sliceserve.kernels.rms_norm import cpu


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension.

    x: (T, d), or (T, H, d) as for query and key norms; float32, bfloat16 or float16; each row of
    T contiguous, rows any stride apart. weight: (d,) of the same dtype. Returns a contiguous tensor
    of x's shape and dtype. The mean is taken in float32; the normalised value is rounded to x's
    dtype before the weight multiplies it, as Hugging Face Llama does.
    """
    if x.is_cuda:
        from sliceserve.kernels.rms_norm import triton

        return triton.rms_norm(x, weight, eps)
    return cpu.rms_norm(x, weight, eps)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """residual += x in place, then ``rms_norm(residual, weight, eps)``, in one pass.

    x and residual: (T, d) of one dtype. The sum is rounded to that dtype before it is normalised.
    """
    if x.is_cuda:
        from sliceserve.kernels.rms_norm import triton

        return triton.add_rms_norm(x, residual, weight, eps)
    return cpu.add_rms_norm(x, residual, weight, eps)
