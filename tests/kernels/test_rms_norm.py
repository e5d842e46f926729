import pytest
import torch

from sliceserve.kernels.rms_norm import reference

EPS = 1e-5


@pytest.mark.parametrize(("num_rows", "width"), [(1, 63), (3, 100), (63, 1), (2, 576), (0, 64)])
def test_rms_norm(backend, poison_empty, dtype_and_tolerance, relative_error, num_rows, width):
    dtype, tolerance = dtype_and_tolerance
    x = (3 * torch.randn(num_rows, width)).to(backend.device, dtype)
    weight = torch.randn(width).to(backend.device, dtype)
    y = backend.load("rms_norm").rms_norm(x, weight, EPS)
    assert y.shape == x.shape
    if num_rows:
        assert relative_error(y, reference.rms_norm(x, weight, EPS)) < tolerance


def test_heads_of_a_fused_projection(backend, poison_empty, dtype_and_tolerance, relative_error):
    dtype, tolerance = dtype_and_tolerance
    qkv = torch.randn(5, 7 * 20).to(backend.device, dtype)
    keys = qkv[:, 60:100].view(5, 2, 20)
    weight = torch.randn(20).to(backend.device, dtype)
    y = backend.load("rms_norm").rms_norm(keys, weight, EPS)
    assert y.is_contiguous()
    assert relative_error(y, reference.rms_norm(keys, weight, EPS)) < tolerance


@pytest.mark.parametrize(("num_rows", "width"), [(1, 63), (3, 100), (0, 64)])
def test_add_rms_norm(backend, poison_empty, dtype_and_tolerance, relative_error, num_rows, width):
    dtype, tolerance = dtype_and_tolerance
    x = torch.randn(num_rows, 2 * width).to(backend.device, dtype)[:, width:]
    residual = torch.randn(num_rows, width).to(backend.device, dtype)
    weight = torch.randn(width).to(backend.device, dtype)
    expected_residual = residual.clone()
    expected = reference.add_rms_norm(x, expected_residual, weight, EPS)
    y = backend.load("rms_norm").add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(residual, expected_residual)
    if num_rows:
        assert relative_error(y, expected) < tolerance


def test_rows_of_zeros_and_of_extremes(backend):
    x = torch.zeros(3, 64, device=backend.device)
    x[1, 0] = 1e18
    x[2, 0] = float("nan")
    y = backend.load("rms_norm").rms_norm(x, torch.ones(64, device=backend.device), EPS)
    assert torch.equal(y[0], torch.zeros_like(y[0]))
    assert y[1, 0].item() == pytest.approx(8.0)
    assert y[2, 0].isnan()
