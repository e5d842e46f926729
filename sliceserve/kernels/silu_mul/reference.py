"""Gated SiLU in plain float32 torch."""

import torch
from torch.nn.functional import silu


def silu_mul(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.float().chunk(2, dim=-1)  # (T, f) each
    return (silu(gate) * up).to(x.dtype)
