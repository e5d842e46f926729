"""Linear layers, with their weights in the layout that the device multiplies fastest."""

import torch
from torch.nn.functional import linear


class PackedLinear:
    """x ↦ x Wᵀ + b.

    weight: (out, in); bias: (out,) or None, of the weight's dtype and device. Calling it takes x
    (T, in) of the same dtype and returns (T, out).
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self._weight = weight
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self._weight, self._bias)
