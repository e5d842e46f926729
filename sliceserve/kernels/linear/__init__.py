"""Linear layers, with their weights in the layout that the device multiplies fastest."""

import torch
from torch.nn import functional

from sliceserve.kernels.linear import cpu


class PackedLinear:
    """x ↦ x Wᵀ + b.

    weight: (out, in); bias: (out,) or None, of the weight's dtype and device. Calling it takes x
    (T, in) of the same dtype and returns (T, out). Float32 weights on the CPU are copied to the
    layout of oneDNN and the original is let go; others are used as they are.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self._linear = cpu.linear if cpu.can_pack(weight) else functional.linear
        self._weight = cpu.pack(weight) if cpu.can_pack(weight) else weight
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._linear(x, self._weight, self._bias)
