"""A vector and the operating point of its packet, around ``kernels.calibrated``: what the choice of
a point looks at, into the units of its step, out of them, and its gain.

``points`` (T,) int64 tell the rows' places in tables by point, (P,) float32. Rows are (T, d) and
contiguous. As in ``row_products``, a row's result has the same bits whatever the other rows are.
"""

from types import ModuleType

import torch

from sliceserve.kernels.operating_points import cpu, reference
from sliceserve.kernels.operating_points.reference import energies

__all__ = ["choose", "energies", "from_units", "measures", "stretched", "to_units"]


def measures(
    rows: torch.Tensor, mean: torch.Tensor, direction: torch.Tensor, components: torch.Tensor
) -> torch.Tensor:
    """(3, T) float32 on the CPU: each row's (row - mean) · direction, its squared norm, and the
    largest magnitude among its components, NaN if one of them is. All float32."""
    measured: torch.Tensor = _of(rows).measures(rows, mean, direction, components)
    return measured


def choose(
    measured: torch.Tensor,
    base: float,
    offset: float,
    max_shift: float,
    largest_energy: float,
    reach: torch.Tensor,
) -> torch.Tensor:
    """What ``measures`` says → points (T,) int64, all on the CPU: the first measure plus
    ``offset``, held within ``max_shift``, plus ``base``, rounded; -1 for an energy above the
    largest, or a component out of the ``reach`` (P,) of that point."""
    return cpu.choose(measured, base, offset, max_shift, largest_energy, reach)


def to_units(components: torch.Tensor, points: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """round(components · factors[point]), as int32; ties to even."""
    units: torch.Tensor = _of(components).to_units(components, points, factors)
    return units


def from_units(units: torch.Tensor, points: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """int32 units · factors[point]."""
    components: torch.Tensor = _of(units).from_units(units, points, factors)
    return components


def stretched(
    states: torch.Tensor, mean: torch.Tensor, points: torch.Tensor, stretches: torch.Tensor
) -> torch.Tensor:
    """states + (states - mean) · stretches[point]."""
    restored: torch.Tensor = _of(states).stretched(states, mean, points, stretches)
    return restored


def _of(rows: torch.Tensor) -> ModuleType:
    return reference if rows.is_cuda else cpu
