import pytest
import torch

from sliceserve.kernels.silu_mul import reference


@pytest.mark.parametrize(("num_rows", "width"), [(1, 63), (3, 100), (5, 1), (2, 1100), (0, 8)])
def test_silu_mul(backend, poison_empty, dtype_and_tolerance, relative_error, num_rows, width):
    dtype, tolerance = dtype_and_tolerance
    x = (5 * torch.randn(num_rows, 2 * width)).to(backend.device, dtype)
    y = backend.load("silu_mul").silu_mul(x)
    assert y.shape == (num_rows, width)
    if num_rows:
        assert relative_error(y, reference.silu_mul(x)) < tolerance


def test_gates_far_from_zero(backend):
    gates = torch.tensor([[-1e30, -200.0, -80.0, 0.0, 80.0, 200.0, 1e30]], device=backend.device)
    y = backend.load("silu_mul").silu_mul(torch.cat((gates, torch.ones_like(gates)), dim=1))
    expected = gates.clamp(min=0)
    # At 1e30 the CPU's exp is held at the last power that is finite.
    torch.testing.assert_close(y[:, 1:], expected[:, 1:], rtol=1e-6, atol=1e-30)


def test_nan_stays_nan(backend):
    x = torch.zeros(1, 128, device=backend.device)
    x[0, 3] = float("nan")
    y = backend.load("silu_mul").silu_mul(x)
    assert y.isnan().nonzero().tolist() == [[0, 3]]
