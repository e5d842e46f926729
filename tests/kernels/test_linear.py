import pytest
import torch

from sliceserve.kernels.linear import PackedLinear, cpu, reference


@pytest.fixture
def device(backend) -> str:
    if backend.interpreted:
        pytest.skip("no CUDA device")
    return backend.device


@pytest.mark.parametrize(
    ("num_rows", "in_features", "out_features"), [(1, 63, 100), (17, 576, 40), (63, 100, 7)]
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_packed_linear(
    device, dtype_and_tolerance, relative_error, num_rows, in_features, out_features, with_bias
):
    dtype, tolerance = dtype_and_tolerance
    x = torch.randn(num_rows, in_features).to(device, dtype)
    weight = torch.randn(out_features, in_features).to(device, dtype)
    bias = torch.randn(out_features).to(device, dtype) if with_bias else None
    y = PackedLinear(weight, bias)(x)
    # Float32 products may run in TensorFloat-32 on a GPU.
    limit = max(tolerance, 1e-3 if device == "cuda" else 0.0)
    assert relative_error(y, reference.linear(x, weight, bias)) < limit


def test_no_rows(device):
    layer = PackedLinear(torch.randn(5, 3, device=device))
    assert layer(torch.empty(0, 3, device=device)).shape == (0, 5)


def test_the_callers_weight_is_neither_kept_nor_changed_once_packed():
    weight = torch.randn(64, 32)
    layer = PackedLinear(weight)
    x = torch.randn(2, 32)
    before = layer(x)
    weight.zero_()
    assert torch.equal(layer(x), before)
    assert (layer.out_features, layer.in_features) == (64, 32)


def test_few_numbers_of_rows_are_computed():
    for num_rows in range(1, 1025):
        assert num_rows <= cpu.rows_computed(num_rows) <= num_rows * 9 / 8
    assert [cpu.rows_computed(n) for n in (1, 7, 16, 17, 255, 512)] == [1, 7, 16, 18, 256, 512]
    assert len({cpu.rows_computed(n) for n in range(1, 1025)}) == 64
