"""Kernels run on the GPU where there is one, else Triton's run under its interpreter."""

import importlib
import os
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch

# Triton reads it when it is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@dataclass(frozen=True)
class Backend:
    """One implementation of the operations, and the device of its tensors."""

    name: str
    device: str

    @property
    def interpreted(self) -> bool:
        return self.name == "triton" and self.device == "cpu"

    def load(self, operation: str) -> ModuleType:
        """The public module, which chooses by device; under the interpreter, the kernel's own."""
        module = f"sliceserve.kernels.{operation}"
        return importlib.import_module(f"{module}.triton" if self.interpreted else module)


@pytest.fixture(params=["cpu", "triton"])
def backend(request: pytest.FixtureRequest) -> Backend:
    on_gpu = request.param == "triton" and torch.cuda.is_available()
    return Backend(request.param, "cuda" if on_gpu else "cpu")


@pytest.fixture
def poison_empty():
    """``torch.empty`` gives NaN, so that an element nobody wrote is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def relative_error():
    """‖actual − expected‖ / ‖expected‖ in float64; NaN where either holds one."""

    def measure(actual: torch.Tensor, expected: torch.Tensor) -> float:
        assert actual.shape == expected.shape and actual.dtype == expected.dtype
        difference = actual.double() - expected.double()
        return (difference.norm() / expected.double().norm()).item()

    return measure


@pytest.fixture(
    params=[(torch.float32, 1e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)],
    ids=["float32", "bfloat16", "float16"],
)
def dtype_and_tolerance(
    request: pytest.FixtureRequest, backend: Backend
) -> tuple[torch.dtype, float]:
    """A dtype, and the relative error that roundings of its width may add up to."""
    if backend.interpreted and request.param[0] == torch.bfloat16:
        pytest.skip("Triton's interpreter truncates to bfloat16, and multiplies the bits of it")
    return request.param
