"""Profiles for measuring the calibrated codec: of the model, and of vectors of other sizes."""

import torch

from sliceserve.calibration import profiles_of
from sliceserve.calibration.profiles import measured as with_rates
from sliceserve.calibration.tables import fit_tables
from sliceserve.cli.bench.vectors import cut_of
from sliceserve.cli.console import measured
from sliceserve.codec.profile import Predictor, Profile
from sliceserve.configs import CalibratedConfig, ClientConfig
from sliceserve.kernels.calibrated import NUM_POINTS
from sliceserve.models.resolve import resolve_model


def model_profile(config: ClientConfig, settings: CalibratedConfig) -> Profile:
    """Of the model's cut, from the cache or made for it. Raises CalibrationError and ModelError."""
    path = resolve_model(config.model.model, config.model.trust_remote_code)
    cut = cut_of(config)
    predictor: Predictor = "none" if settings.hide_tokens else "state"
    with measured("calibrating") as progress:
        return profiles_of(path, [cut], [predictor], progress)[cut, predictor]


def synthetic_profile(
    vectors: torch.Tensor, settings: CalibratedConfig, transform: bool
) -> Profile:
    """For vectors (n, d) that no model made: its matrices, diagonal without ``transform``, foretell
    nothing and turn nothing, but take the time of those that do. Tables and rates are those of the
    vectors."""
    states = vectors.cpu()
    hidden_size = states.shape[1]
    components, shifts = states - states.mean(0), torch.zeros(len(states))
    base_step = components.square().mean().sqrt().item() / 16
    identity = torch.eye(hidden_size) if transform else torch.ones(hidden_size)
    zeros = torch.zeros_like(identity, dtype=torch.half)
    hides = settings.hide_tokens
    profile = Profile(
        model="synthetic",
        cut=1,
        vocab_size=1,
        predictor="none" if hides else "state",
        base_step=base_step,
        escape_norm=8 * states.norm(dim=1).median().item(),
        mean=states.mean(0),
        offset=states.mean(0),
        basis=identity.half(),
        sensitivity=torch.zeros(hidden_size + 1),
        rates=torch.zeros(NUM_POINTS),
        gains=torch.ones(NUM_POINTS),
        token_weight=None if hides else zeros,
        token_ids=None if hides else torch.zeros(1, dtype=torch.int32),
        token_rows=None if hides else torch.zeros(1, hidden_size, dtype=torch.half),
        state_weight=None if hides else zeros,
        tables=fit_tables(components, base_step, shifts),
    )
    energy = components.square().sum(1).mean().item()
    return with_rates(profile, components[:16], shifts[:16], energy)
