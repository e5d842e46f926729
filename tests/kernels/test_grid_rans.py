"""The two implementations of the rANS baseline write and read the same bytes."""

import numpy as np
import pytest
import torch

from sliceserve.kernels import grid_rans
from sliceserve.kernels.grid_rans import GridError, reference
from sliceserve.kernels.grid_rans.layout import ROW_LENGTHS, max_step


def rows_of_every_kind(hidden_size):
    rows = torch.randn(9, hidden_size)
    rows[:, ::97] *= 100
    rows[1] = 0
    rows[2] = 0.5
    rows[3] *= 1e-38
    rows[4] = rows[4].clamp(-3, 3) * 1e38
    rows[5] = torch.where(torch.arange(hidden_size) % 16 < 2, 1.0, 0.0) * rows[5]
    rows[6, 1:] = 0
    rows[7] = rows[7].abs().neg()
    rows[8] = (
        torch.finfo(torch.float32).max * torch.tensor([1.0, -1.0]).repeat(hidden_size)[:hidden_size]
    )
    return rows


def decoded(packets, hidden_size):
    out = torch.full((len(packets), hidden_size), torch.nan)
    grid_rans.decode(packets, out)
    return out


@pytest.mark.parametrize("num_levels", [2, 3, 8, 100, 256])
@pytest.mark.parametrize("hidden_size", [1, 5, 64, 257, 1000])
def test_writes_and_reads_as_the_reference(hidden_size, num_levels):
    rows = rows_of_every_kind(hidden_size)
    packets = grid_rans.encode(rows, num_levels)
    assert packets == [reference.encode(row, num_levels) for row in rows.numpy()]
    expected = [reference.decode(packet, hidden_size) for packet in packets]
    assert torch.equal(decoded(packets, hidden_size), torch.from_numpy(np.stack(expected)))


@pytest.mark.parametrize("num_levels", [2, 7, 256])
def test_values_are_within_half_a_step(num_levels):
    rows = torch.randn(20, 300)
    packets = grid_rans.encode(rows, num_levels)
    # Rounding the step to bfloat16 and the zero point to a level may each move the grid.
    step = (rows.amax(1) - rows.amin(1)) / (num_levels - 1) * (1 + 2**-7)
    error = (decoded(packets, 300) - rows).abs().amax(1)
    assert (error <= step * 1.01).all()
    assert (decoded(packets, 300) - rows).abs().median() <= step.max() / 4


def test_extremes_stay_finite_and_the_smallest_become_zeros():
    largest = torch.finfo(torch.float32).max
    rows = torch.tensor([[largest, -largest, 0.0], [1e-40, -1e-40, 0.0], [1e-31, 0.0, 0.0]])
    for num_levels in (2, 3, 255, 256):
        out = decoded(grid_rans.encode(rows, num_levels), 3)
        assert out.isfinite().all()
        assert not out[1:].any()


@pytest.mark.parametrize("num_levels", [2, 3, 4, 5, 100, 128, 129, 255, 256])
def test_the_largest_step_is_the_largest(num_levels):
    def top(bits):
        return float(np.uint32(bits << 16).view(np.float32)) * (num_levels - 1)

    largest = float(np.finfo(np.float32).max)
    step = max_step(num_levels)
    assert top(step) <= largest
    assert step == 0x7F7F or top(step + 1) > largest


def test_finds_the_row_length_of_a_periodic_row():
    """Elements in the first columns of every 48: a matrix of 48 columns says it in fewest bits."""
    row = torch.zeros(1, 960)
    row[0, ::48] = 1.0
    row[0, 1::48] = torch.randn(20)
    periodic = grid_rans.encode(row, 16)[0]
    shuffled = grid_rans.encode(row[:, torch.randperm(960)], 16)[0]
    assert len(periodic) < len(shuffled) - 10


def test_few_elements_cost_few_bytes():
    row = torch.zeros(1, 4096)
    assert len(grid_rans.encode(row, 256)[0]) <= 8
    row[0, 1234] = 3.0
    assert len(grid_rans.encode(row, 8)[0]) < 60


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_names_the_row_that_is_not_finite(value):
    rows = torch.randn(3, 64)
    rows[1, 63] = value
    with pytest.raises(GridError) as caught:
        grid_rans.encode(rows, 8)
    assert caught.value.index == 1


def test_row_lengths_fit_their_field():
    assert len(ROW_LENGTHS) == 16 and list(ROW_LENGTHS) == sorted(set(ROW_LENGTHS))
