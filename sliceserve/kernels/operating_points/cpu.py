"""Operating points on the CPU: one pass over a row each. One vector takes PyTorch longer to hand
out to its operations than these take altogether."""

import numpy as np
import torch
from numba import njit

from sliceserve.kernels.elements import elements

_F32 = np.float32(0)
_I32 = np.int32(0)
_I64 = np.int64(0)


def measures(
    rows: torch.Tensor, mean: torch.Tensor, direction: torch.Tensor, components: torch.Tensor
) -> torch.Tensor:
    num_rows, width = rows.shape
    out = torch.empty(3, num_rows)
    measure_rows(
        rows.data_ptr(),
        mean.data_ptr(),
        direction.data_ptr(),
        components.data_ptr(),
        out.data_ptr(),
        num_rows,
        width,
    )
    return out


def choose(
    measured: torch.Tensor,
    base: float,
    offset: float,
    max_shift: float,
    largest_energy: float,
    reach: torch.Tensor,
) -> torch.Tensor:
    num_rows = measured.shape[1]
    points = torch.empty(num_rows, dtype=torch.int64)
    choose_points(
        measured.data_ptr(),
        base,
        offset,
        max_shift,
        largest_energy,
        reach.data_ptr(),
        len(reach),
        points.data_ptr(),
        num_rows,
    )
    return points


def to_units(components: torch.Tensor, points: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    units = torch.empty(components.shape, dtype=torch.int32)
    components_to_units(
        components.data_ptr(),
        points.data_ptr(),
        factors.data_ptr(),
        units.data_ptr(),
        *components.shape,
    )
    return units


def from_units(units: torch.Tensor, points: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    out = torch.empty(units.shape)
    units_to_components(
        units.data_ptr(), points.data_ptr(), factors.data_ptr(), out.data_ptr(), *units.shape
    )
    return out


def stretched(
    states: torch.Tensor, mean: torch.Tensor, points: torch.Tensor, stretches: torch.Tensor
) -> torch.Tensor:
    out = torch.empty(states.shape)
    stretch_states(
        states.data_ptr(),
        mean.data_ptr(),
        points.data_ptr(),
        stretches.data_ptr(),
        out.data_ptr(),
        *states.shape,
    )
    return out


@njit(cache=True, nogil=True)
def measure_rows(p_rows, p_mean, p_direction, p_components, p_out, num_rows, width):
    mean = elements(p_mean, 0, width, _F32)
    direction = elements(p_direction, 0, width, _F32)
    out = elements(p_out, 0, 3 * num_rows, _F32)
    for t in range(num_rows):
        row = elements(p_rows, t * width, width, _F32)
        components = elements(p_components, t * width, width, _F32)
        shift = energy = peak = np.float32(0)
        for i in range(width):
            shift = _product_added(shift, row[i] - mean[i], direction[i])
            energy += row[i] * row[i]
            magnitude = abs(components[i])
            # Once NaN, it stays.
            peak = magnitude if magnitude > peak or magnitude != magnitude else peak
        out[t], out[num_rows + t], out[2 * num_rows + t] = shift, energy, peak


# The sums of ``row_products`` are of such steps.
@njit(forceinline=True, fastmath={"contract"})
def _product_added(total, x, y):
    return total + x * y


@njit(cache=True, nogil=True)
def choose_points(
    p_measured, base, offset, max_shift, largest_energy, p_reach, num_points, p_points, num_rows
):
    measured = elements(p_measured, 0, 3 * num_rows, _F32)
    reach = elements(p_reach, 0, num_points, _F32)
    points = elements(p_points, 0, num_rows, _I64)
    for t in range(num_rows):
        energy, peak = measured[num_rows + t], measured[2 * num_rows + t]
        points[t] = -1
        # False for what is no number.
        if energy <= np.float32(largest_energy):
            shift = measured[t] + np.float32(offset)
            shift = min(max(shift, np.float32(-max_shift)), np.float32(max_shift))
            point = np.int64(np.rint(np.float32(base) + shift))
            point = min(max(point, 0), num_points - 1)
            if peak < reach[point]:
                points[t] = point


@njit(cache=True, nogil=True)
def components_to_units(p_components, p_points, p_factors, p_units, num_rows, width):
    for t in range(num_rows):
        components = elements(p_components, t * width, width, _F32)
        units = elements(p_units, t * width, width, _I32)
        factor = _by_point(p_points, p_factors, t)
        for i in range(width):
            units[i] = np.int32(np.rint(components[i] * factor))


@njit(cache=True, nogil=True)
def units_to_components(p_units, p_points, p_factors, p_out, num_rows, width):
    for t in range(num_rows):
        units = elements(p_units, t * width, width, _I32)
        out = elements(p_out, t * width, width, _F32)
        factor = _by_point(p_points, p_factors, t)
        for i in range(width):
            out[i] = np.float32(units[i]) * factor


@njit(cache=True, nogil=True)
def stretch_states(p_states, p_mean, p_points, p_stretches, p_out, num_rows, width):
    mean = elements(p_mean, 0, width, _F32)
    for t in range(num_rows):
        states = elements(p_states, t * width, width, _F32)
        out = elements(p_out, t * width, width, _F32)
        stretch = _by_point(p_points, p_stretches, t)
        for i in range(width):
            out[i] = states[i] + (states[i] - mean[i]) * stretch


@njit(forceinline=True)
def _by_point(p_points, p_table, t):
    point = elements(p_points, t, 1, _I64)[0]
    return elements(p_table, point, 1, _F32)[0]
