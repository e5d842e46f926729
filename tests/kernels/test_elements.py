import numpy as np
import pytest
import torch
from numba import njit

from sliceserve.kernels.elements import (
    SUM_IN_LANES,
    elements,
    exp,
    from_float,
    storage_scalar,
    to_float,
)


@njit
def _convert(like, p_x, p_y, count):
    x = elements(p_x, 0, count, np.float32(0))
    y = elements(p_y, 0, count, like)
    for i in range(count):
        y[i] = from_float(x[i], like)
        x[i] = to_float(y[i])


@njit(fastmath=SUM_IN_LANES)
def _exp(x, y):
    for i in range(x.size):
        y[i] = exp(x[i])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounds_and_widens_as_torch_does(dtype):
    bits = torch.randint(-(2**31), 2**31, (4096,)).int()
    # Halves of a step exercise ties; the largest NaN would round to infinity.
    halves = bits & ~0xFFFF | 0x8000
    largest_nan = torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32)
    x = torch.cat((bits, halves, largest_nan)).view(torch.float32)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-40, 6e-8, 65519.0, 65520.0])
    x = torch.cat((x, special, torch.randn(1001)))
    expected = x.to(dtype)
    y = torch.empty_like(expected)
    _convert(storage_scalar(dtype), x.data_ptr(), y.data_ptr(), x.numel())
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(x, expected.float(), rtol=0, atol=0, equal_nan=True)


def test_exp_is_within_a_unit_in_the_last_place():
    x = np.linspace(-86.9, 87.9, 100_001).astype(np.float32)
    y = np.empty_like(x)
    _exp(x, y)
    exact = np.exp(x.astype(np.float64))
    assert np.max(np.abs(y - exact) / np.spacing(exact.astype(np.float32))) < 1.0


def test_exp_of_extremes():
    x = np.array([-np.inf, -1e9, 0.0, 1e9, np.inf, np.nan], dtype=np.float32)
    y = np.empty_like(x)
    _exp(x, y)
    assert (y[:2] < 2e-38).all() and y[2] == 1.0
    assert (y[3:5] > 1e38).all() and np.isfinite(y[3:5]).all() and np.isnan(y[5])


def test_other_dtypes_are_refused():
    with pytest.raises(TypeError, match="float64"):
        storage_scalar(torch.float64)
