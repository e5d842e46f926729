"""Which step a token gets: the operating point of its packet."""

from collections.abc import Callable

import numpy as np
import torch

from sliceserve.codec.base import CodecError
from sliceserve.codec.profile import Profile
from sliceserve.codec.quantization import Quantization
from sliceserve.configs import CalibratedConfig
from sliceserve.kernels.calibrated import NUM_POINTS
from sliceserve.kernels.operating_points import choose, energies, measures

# How far its sensitivity moves a token's point from the average at most.
MAX_SHIFT = 6

_COARSEST = torch.tensor([NUM_POINTS - 1])


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
        self.direction = profile.sensitivity[:-1].contiguous().to(device)
        self.shift = float(profile.sensitivity[-1])
        # Held where its square is a float32.
        self.largest_energy = min(profile.escape_norm, 1e19) ** 2
        self._reach = quantization.reach.cpu()
        # np.interp wants rising abscissae; more bits is a finer step, a lower point.
        self.base = float(
            np.interp(
                config.bits_per_element,
                profile.rates.numpy()[::-1],
                np.arange(NUM_POINTS - 1, -1, -1),
            )
        )
        if (cap := config.bits_per_token) is not None:
            nothing = torch.zeros(1, profile.hidden_size, device=device)
            largest_id = torch.tensor([profile.vocab_size - 1])
            if (least := int(self._sizes(nothing, _COARSEST, largest_id))) > cap:
                raise CodecError(
                    f"bits_per_token must be at least {least} for this model, got {cap}"
                )

    @property
    def searches(self) -> bool:
        """Whether points are tried until one suits, for want of a rule that names it."""
        return self._config.bits_per_token is not None or self._config.distortion is not None

    def points(
        self,
        x: torch.Tensor,
        predicted: torch.Tensor,
        components: torch.Tensor,
        token_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Tokens x (n, d), their prediction, the rest in the profile's basis, and ids (n,) →
        points (n,) int64 on the CPU; -1 for a token that no step suits. Under a cap there is none:
        ``components`` lose what the coarsest step has no room for."""

        if (cap := self._config.bits_per_token) is not None:

            def is_small(points: torch.Tensor) -> torch.Tensor:
                fits = self._quantization.fits(components, points)
                reachable = torch.where(fits[:, None], components, 0)
                return fits.cpu() & (self._sizes(reachable, points, token_ids) <= cap)

            points = _first(is_small, len(x), NUM_POINTS)
            too_large = points == NUM_POINTS
            if bool(too_large.any()):
                components[too_large] = self._trimmed(
                    components[too_large], token_ids[too_large], cap
                )
            return points.clamp(max=NUM_POINTS - 1)
        if (budget := self._config.distortion) is not None:
            energy = energies(x)

            def is_coarse(points: torch.Tensor) -> torch.Tensor:
                fits = self._quantization.fits(components, points)
                reachable = torch.where(fits[:, None], components, 0)
                _, units = self._quantization.write(reachable, points, token_ids)
                states = predicted + self._quantization.residual(units, points)
                error = energies(x - self._quantization.restored(states, points))
                return (fits & (error > budget * energy)).cpu()

            points = _first(is_coarse, len(x), NUM_POINTS) - 1
            fits = self._quantization.fits(components, points.clamp(min=0).to(x.device))
            return torch.where(fits.cpu(), points, -1)
        return self._by_sensitivity(x, components)

    def _trimmed(self, components: torch.Tensor, token_ids: torch.Tensor, cap: int) -> torch.Tensor:
        """As many of the largest components (n, d) as the cap has room for at the coarsest step,
        zeros for the others."""
        points = _COARSEST.expand(len(components))
        reach = self._quantization.reach[-1]
        reachable = components.nan_to_num().clamp(-reach, reach)
        ranks = reachable.abs().argsort(dim=1, stable=True).argsort(dim=1)  # 0: the smallest

        def without(num_smallest: torch.Tensor) -> torch.Tensor:
            return torch.where(ranks < num_smallest[:, None].to(ranks.device), 0, reachable)

        def is_small(num_smallest: torch.Tensor) -> torch.Tensor:
            return self._sizes(without(num_smallest), points, token_ids) <= cap

        return without(_first(is_small, len(components), components.shape[1]))

    def _sizes(
        self, components: torch.Tensor, points: torch.Tensor, token_ids: torch.Tensor
    ) -> torch.Tensor:
        """Bits of each packet, (n,) on the CPU."""
        packets, _ = self._quantization.write(components, points, token_ids)
        return torch.tensor([8 * len(packet) for packet in packets])

    def _by_sensitivity(self, x: torch.Tensor, components: torch.Tensor) -> torch.Tensor:
        """Tokens whose error moves the answer more than others' get finer steps."""
        measured = measures(x, self._mean, self.direction, components)
        return choose(measured, self.base, self.shift, MAX_SHIFT, self.largest_energy, self._reach)


def _first(holds: Callable[[torch.Tensor], torch.Tensor], num_rows: int, stop: int) -> torch.Tensor:
    """For each row the lowest number (int64, ``stop`` if none) from which on ``holds`` is true,
    by bisection: it is false below and true above, or nearly so, and was seen true there."""
    low = torch.zeros(num_rows, dtype=torch.int64)
    high = torch.full((num_rows,), stop)
    while bool((low < high).any()):
        middle = (low + high) // 2
        is_true = holds(middle.clamp(max=stop - 1))
        is_open = low < high
        high = torch.where(is_open & is_true, middle, high)
        low = torch.where(is_open & ~is_true, middle + 1, low)
    return low
