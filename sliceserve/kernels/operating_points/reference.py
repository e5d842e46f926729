"""Operating points in PyTorch: the GPU's, and what the CPU's must equal."""

import torch

from sliceserve.kernels.row_products import row_products


def measures(
    rows: torch.Tensor, mean: torch.Tensor, direction: torch.Tensor, components: torch.Tensor
) -> torch.Tensor:
    shifts = row_products(rows - mean, direction[:, None])[:, 0]
    return torch.stack([shifts, energies(rows), components.abs().amax(dim=1)]).cpu()


def energies(rows: torch.Tensor) -> torch.Tensor:
    """(T,): squared norms; as products, so that a row's does not depend on its neighbours."""
    ones = torch.ones(rows.shape[1], 1, device=rows.device)
    return row_products(rows.square(), ones)[:, 0]


def to_units(components: torch.Tensor, points: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return (components * factors[points][:, None]).round().to(torch.int32)


def from_units(units: torch.Tensor, points: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return units * factors[points][:, None]


def stretched(
    states: torch.Tensor, mean: torch.Tensor, points: torch.Tensor, stretches: torch.Tensor
) -> torch.Tensor:
    return states + (states - mean) * stretches[points][:, None]
