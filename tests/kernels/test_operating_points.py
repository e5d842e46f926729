import pytest
import torch

from sliceserve.kernels.operating_points import choose, cpu, reference

FACTORS = torch.exp2(torch.arange(32) / 4 - 3)


@pytest.mark.parametrize(("num_rows", "width"), [(0, 3), (1, 1), (5, 67), (3, 1025)])
def test_bits_are_those_of_the_reference(num_rows, width):
    generator = torch.Generator().manual_seed(width)
    rows, components = 9 * torch.randn(2, num_rows, width, generator=generator)
    mean, direction = torch.randn(2, width, generator=generator)
    points = torch.randint(32, (num_rows,), generator=generator)
    units = (640 * components).int()
    for name, arguments in {
        "measures": (rows, mean, direction, components),
        "to_units": (components, points, FACTORS),
        "from_units": (units, points, FACTORS),
        "stretched": (rows, mean, points, FACTORS),
    }.items():
        ours, expected = (getattr(module, name)(*arguments) for module in (cpu, reference))
        assert ours.dtype == expected.dtype
        assert torch.equal(ours, expected), name


def test_units_round_ties_to_even():
    ties = torch.tensor([[0.5, 1.5, -2.5, -0.5]])
    assert cpu.to_units(ties, torch.tensor([0]), torch.ones(1)).tolist() == [[0, 2, -2, 0]]


def test_the_largest_of_components_with_nan_is_nan():
    rows = torch.zeros(3, 4)
    components = rows.clone()
    components[0, 1], components[2, 3] = torch.nan, -torch.inf
    for module in (cpu, reference):
        peaks = module.measures(rows, rows[0], rows[0], components)[2].tolist()
        assert str(peaks) == "[nan, 0.0, inf]"


def test_choose():
    shift = [0.0, 0.5, 1.5, -99.0, 99.0, torch.nan, 0.0, 0.0, 0.0, 0.0]
    energy = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 9.0, torch.nan, 1.0, 1.0]
    peak = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 10.0, torch.nan]
    reach = 1 + torch.arange(32.0)
    points = choose(torch.tensor([shift, energy, peak]), 7.5, 0.5, 3, 4.0, reach).tolist()
    assert points[:5] == [8, 8, 10, 4, 10]
    assert 0 <= points[5] < 32
    assert points[6:] == [-1, -1, -1, -1]
