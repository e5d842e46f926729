"""Rotary position embedding in plain float32 torch."""

import torch


def apply_rotary(
    q: torch.Tensor, k: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor
) -> None:
    rotary_dim = cos_sin.shape[1]
    cos, sin = cos_sin[positions].unsqueeze(1).chunk(2, dim=-1)  # (T, 1, rotary_dim / 2)
    for heads in (q, k):
        rotated = heads[..., :rotary_dim]
        first, second = rotated.float().chunk(2, dim=-1)
        rotated.copy_(torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1))
