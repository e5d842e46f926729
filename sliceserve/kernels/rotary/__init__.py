"""Rotary position embedding (Su et al., 2021, arXiv 2104.09864)."""

import torch

from sliceserve.kernels.rotary import cpu


def apply_rotary(
    q: torch.Tensor, k: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor
) -> None:
    """Rotate query and key heads in place by the angles of their positions.

    q: (T, H, D) and k: (T, Hkv, D) of one dtype (float32, bfloat16 or float16); each row of T
    contiguous, rows any stride apart. cos_sin: (max_positions, rotary_dim) float32, cosines in the
    first half of a row, sines in the second. positions: (T,) int64.

    Element i is paired with element i + rotary_dim/2, as in GPT-NeoX and Hugging Face Llama.
    Elements from rotary_dim on are left as they are.
    """
    if q.is_cuda:
        from sliceserve.kernels.rotary import triton

        triton.apply_rotary(q, k, cos_sin, positions)
    else:
        cpu.apply_rotary(q, k, cos_sin, positions)
