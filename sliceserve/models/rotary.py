"""The angles of rotary position embedding (Su et al., 2021, arXiv 2104.09864)."""

import math

import torch

from sliceserve.models.spec import ModelSpec, RopeScaling


def cos_sin_table(spec: ModelSpec, device: torch.device) -> torch.Tensor:
    """(max_position_embeddings, head_dim) float32: cosines in the first half of a row, sines in
    the second."""
    inv_freq = inverse_frequencies(spec.rope_theta, spec.head_dim) / spec.rope_factor
    if spec.rope_scaling is not None:
        inv_freq = stretch(inv_freq, spec.rope_scaling)
    positions = torch.arange(spec.max_position_embeddings, dtype=torch.float32)
    angles = torch.outer(positions, inv_freq)  # (max_positions, head_dim / 2)
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(device)


def inverse_frequencies(theta: float, head_dim: int) -> torch.Tensor:
    """(head_dim / 2,) float32, radians per position."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    return 1.0 / theta**exponents


def stretch(inv_freq: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Frequencies as Llama 3.1 changes them, for a context longer than that of pretraining."""
    turns = scaling.original_max_positions * inv_freq / (2 * math.pi)
    band = scaling.high_freq_factor - scaling.low_freq_factor
    kept = ((turns - scaling.low_freq_factor) / band).clamp(0.0, 1.0)
    return inv_freq * (kept + (1.0 - kept) / scaling.factor)
