"""Which step a token gets: the operating point of its packet."""

from collections.abc import Callable

import numpy as np
import torch

from sliceserve.codec.profile import Profile
from sliceserve.codec.quantization import Quantization
from sliceserve.configs import CalibratedConfig
from sliceserve.kernels.calibrated import NUM_POINTS
from sliceserve.kernels.row_products import row_products

# How far its sensitivity moves a token's point from the average at most.
MAX_SHIFT = 6


class RateControl:
    """Chooses points by ``config``, for each token from its own vector alone."""

    def __init__(
        self,
        config: CalibratedConfig,
        profile: Profile,
        quantization: Quantization,
        device: torch.device,
    ) -> None:
        self._config = config
        self._quantization = quantization
        self._mean = profile.mean.to(device)
        self._direction = profile.sensitivity[:-1, None].contiguous().to(device)  # (d, 1)
        self._offset = float(profile.sensitivity[-1])
        self._escape_norm = profile.escape_norm
        # np.interp wants rising abscissae; more bits is a finer step, a lower point.
        self._base = float(
            np.interp(
                config.bits_per_element,
                profile.rates.numpy()[::-1],
                np.arange(NUM_POINTS - 1, -1, -1),
            )
        )

    def points(
        self,
        x: torch.Tensor,
        predicted: torch.Tensor,
        components: torch.Tensor,
        token_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Tokens x (n, d), their prediction, the rest in the profile's basis, and ids (n,) →
        points (n,) int64 on the CPU; -1 for a token that no step suits."""

        def written(points: torch.Tensor) -> tuple[torch.Tensor, list[bytes], torch.Tensor]:
            fits = self._quantization.fits(components, points)
            reachable = torch.where(fits[:, None], components, 0)
            packets, residual = self._quantization.write(reachable, points, token_ids)
            return fits, packets, residual

        if (cap := self._config.bits_per_token) is not None:

            def is_small(points: torch.Tensor) -> torch.Tensor:
                fits, packets, _ = written(points)
                return fits.cpu() & torch.tensor([8 * len(packet) <= cap for packet in packets])

            points = _first(is_small, len(x))
            return torch.where(points == NUM_POINTS, -1, points)
        if (budget := self._config.distortion) is not None:
            energy = x.square().sum(dim=1)

            def is_coarse(points: torch.Tensor) -> torch.Tensor:
                fits, _, residual = written(points)
                error = (x - (predicted + residual)).square().sum(dim=1)
                return (fits & (error > budget * energy)).cpu()

            points = _first(is_coarse, len(x)) - 1
            fits = self._quantization.fits(components, points.clamp(min=0).to(x.device))
            return torch.where(fits.cpu(), points, -1)
        return self._by_sensitivity(x, components)

    def _by_sensitivity(self, x: torch.Tensor, components: torch.Tensor) -> torch.Tensor:
        """Tokens whose error moves the answer more than others' get finer steps."""
        shift = row_products(x - self._mean, self._direction)[:, 0] + self._offset
        shifted = self._base + shift.clamp(-MAX_SHIFT, MAX_SHIFT)
        points = shifted.round().long().clamp(0, NUM_POINTS - 1)
        # As a product, so that a row's norm does not depend on its neighbours.
        energy = row_products(x.square(), torch.ones_like(self._direction))[:, 0]
        is_usual = energy <= self._escape_norm**2
        return torch.where(is_usual & self._quantization.fits(components, points), points, -1).cpu()


def _first(holds: Callable[[torch.Tensor], torch.Tensor], num_rows: int) -> torch.Tensor:
    """For each row the lowest point (int64, NUM_POINTS if none) from which on ``holds`` is true,
    by bisection: it is false below and true above, or nearly so, and was seen true there."""
    low = torch.zeros(num_rows, dtype=torch.int64)
    high = torch.full((num_rows,), NUM_POINTS)
    while bool((low < high).any()):
        middle = (low + high) // 2
        is_true = holds(middle.clamp(max=NUM_POINTS - 1))
        is_open = low < high
        high = torch.where(is_open & is_true, middle, high)
        low = torch.where(is_open & ~is_true, middle + 1, low)
    return low
