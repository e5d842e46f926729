"""The gate of a SwiGLU feed-forward layer (Shazeer, 2020, arXiv 2002.05202)."""

import torch

from sliceserve.kernels.silu_mul import cpu


def silu_mul(x: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up, where silu(z) = z / (1 + exp(-z)).

    x: (T, 2f) contiguous, gate in the first half of a row and up in the second; float32, bfloat16
    or float16. Returns (T, f) of x's dtype, computed in float32 and rounded once.
    """
    if x.is_cuda:
        from sliceserve.kernels.silu_mul import triton

        return triton.silu_mul(x)
    return cpu.silu_mul(x)
