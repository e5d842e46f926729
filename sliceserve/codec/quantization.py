"""The floating-point sides of ``kernels.calibrated``: into the profile's basis, and out of it."""

from collections.abc import Sequence
from functools import cached_property

import torch

from sliceserve.codec.profile import Profile, ProfileError
from sliceserve.kernels import calibrated as kernel
from sliceserve.kernels.operating_points import from_units, stretched, to_units
from sliceserve.kernels.row_products import row_products

# What a bit is worth, as squared error in the kernel's units of 1/4096 step²: 0.4 step².
LAMBDA = 1638

_UNITS = 1 << kernel.FRACTION_BITS


class Quantization:
    """Residuals of tokens to packets and back, on one device.

    ``payload_bytes`` is how many bytes of token id a packet carries: 0, 2 or 3.
    """

    def __init__(self, profile: Profile, payload_bytes: int, device: torch.device) -> None:
        self.tables = profile.tables
        self.payload_bytes = payload_bytes
        self._device = device
        self._mean = profile.mean.to(device)
        self.stretches = (profile.gains - 1).to(device)
        self.basis = profile.basis.float().to(device)  # (d, d) or (d,)
        points = torch.arange(kernel.NUM_POINTS, device=device)
        steps = profile.base_step * torch.exp2(points / 4)  # (NUM_POINTS,)
        # (NUM_POINTS,): the largest magnitude that each point's step can tell.
        self.reach = steps * (kernel.MAX_INPUT // _UNITS - 1)
        self.to_units = _UNITS / steps
        self.from_units = steps / _UNITS

    @cached_property
    def inverse(self) -> torch.Tensor:
        """Encoders alone need it."""
        return inverse(self.basis.cpu()).to(self._device)

    def components(self, residual: torch.Tensor) -> torch.Tensor:
        """(n, d) residuals → (n, d) in the profile's basis."""
        return row_products(residual, self.inverse)

    def fits(self, components: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """(n,) bool: whether all components are within reach of the points' steps."""
        return components.abs().amax(dim=1) < self.reach[points]

    def write(
        self, components: torch.Tensor, points: torch.Tensor, token_ids: torch.Tensor
    ) -> tuple[list[bytes], torch.Tensor]:
        """Components (n, d) that fit, points (n,) and ids (n,) int64 → a packet each, and the rows
        as their decoder will see them, in the units of ``residual``."""
        points = points.to(self._device).contiguous()
        if self.payload_bytes:
            payloads = token_ids.to(self._device, torch.int32)
        else:
            payloads = torch.zeros(len(points), dtype=torch.int32, device=self._device)
        return kernel.encode(
            to_units(components.contiguous(), points, self.to_units),
            points.to(torch.uint8),
            payloads,
            self.tables,
            LAMBDA,
            self.payload_bytes,
        )

    def residual(self, units: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """(n, d) int32 in 1/64 of the steps of points (n,) → the residuals (n, d)."""
        return row_products(from_units(units, points, self.from_units), self.basis)

    def read(self, packets: Sequence[bytes]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Packets → residuals (n, d), points (n,) int64, and token ids (n,) int64 on the CPU.
        Raises CalibratedError."""
        units, points, payloads = kernel.decode(
            packets, self.tables, self.payload_bytes, self._device
        )
        points = points.long()
        return self.residual(units, points), points, payloads.cpu().long()

    def restored(self, states: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Decoded states (n, d) and their points (n,) → (n, d), with the points' gains."""
        return stretched(states, self._mean, points, self.stretches)

    def check(self, packet: bytes) -> int:
        """The token id. Raises CalibratedError unless ``read`` will accept the packet."""
        payloads = kernel.decode([packet], self.tables, self.payload_bytes)[2]
        return int(payloads[0])


def inverse(basis: torch.Tensor) -> torch.Tensor:
    """Of a profile's basis, (d, d) or (d,), as float32. Raises ProfileError where there is none."""
    if basis.dim() == 1:
        if not bool(basis.all()):
            raise ProfileError("the profile's basis has no inverse: a component's scale is zero")
        return basis.double().reciprocal().float()
    try:
        whole: torch.Tensor = torch.linalg.inv(basis.double())
    except RuntimeError as error:
        raise ProfileError(f"the profile's basis has no inverse: {error}") from error
    return whole.float().contiguous()
