"""From a model and a text to the profiles of its cuts."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sliceserve.calibration.activations import Activations, collect
from sliceserve.calibration.basis import coding_basis, sensitivity
from sliceserve.calibration.corpus import WINDOW, default_text, windows_of
from sliceserve.calibration.predictor import Samples, fit_predictor, product
from sliceserve.calibration.tables import fit_tables
from sliceserve.codec.profile import Predictor, Profile
from sliceserve.codec.quantization import Quantization, inverse
from sliceserve.codec.rate_control import MAX_SHIFT
from sliceserve.kernels import calibrated as kernel
from sliceserve.models.embeddings import read_embeddings
from sliceserve.models.resolve import fingerprint
from sliceserve.models.spec import ModelSpec
from sliceserve.models.tokenizer import Tokenizer

DEFAULT_TOKENS = 32_000
# A window's gradients take several times as long as its hidden states.
_GRADIENT_WINDOWS = 12
_MIN_WINDOWS = 4
# Tokens with norms this many times the median are massive activations: they are sent apart.
_ESCAPE_RATIO = 8.0
# Point 0 has steps this much finer than the standard deviation: about five bits per element.
_FINEST = 16.0
_TABLE_SAMPLES = 4500
_RATE_SAMPLES = 256
# Beyond this share of a state's energy a gain does not make up for what is lost.
_MAX_LOST = 0.4


class CalibrationError(Exception):
    """A profile cannot be made: why, and what to do."""


def calibrate(
    path: Path,
    cuts: Sequence[int],
    predictors: Sequence[Predictor] = ("state", "none"),
    text: str | None = None,
    max_tokens: int = DEFAULT_TOKENS,
    transform: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[tuple[int, Predictor], Profile]:
    """Profiles of the model in the folder ``path`` for each of ``cuts`` and ``predictors``.

    ``text`` None is the one that is shipped; ``max_tokens`` bounds what is read of it. Without
    ``transform`` profiles have diagonals in place of their matrices. ``progress`` is told how much
    is done, and of how much. Raises CalibrationError and ModelError.
    """
    spec = ModelSpec.load(path)
    if not cuts or not all(0 < cut < spec.num_layers for cut in cuts):
        raise CalibrationError(
            f"cuts must lie between layers 1 and {spec.num_layers - 1} of this model, got "
            f"{', '.join(map(str, cuts)) or 'none'}"
        )
    windows = windows_of(default_text() if text is None else text, Tokenizer.load(path), max_tokens)
    if len(windows) < _MIN_WINDOWS:
        raise CalibrationError(
            f"the text has {len(windows) * WINDOW} whole tokens; a profile needs at least "
            f"{_MIN_WINDOWS * WINDOW}, and gets better up to about {DEFAULT_TOKENS}"
        )
    num_profiles = len(cuts) * len(predictors)
    total = len(windows) + num_profiles
    activations = collect(
        path, windows, cuts, _GRADIENT_WINDOWS, lambda done: progress(done, total)
    )
    maker = _Maker(path, spec, windows, transform)
    profiles: dict[tuple[int, Predictor], Profile] = {}
    for cut in cuts:
        for predictor in predictors:
            profiles[cut, predictor] = maker.make(cut, predictor, activations[cut])
            progress(len(windows) + len(profiles), total)
    return profiles


class _Maker:
    """Makes profiles of one model from what was collected of it."""

    def __init__(self, path: Path, spec: ModelSpec, windows: torch.Tensor, transform: bool) -> None:
        self._model = fingerprint(path)
        self._vocab_size = spec.vocab_size
        self._windows = windows
        self._transform = transform
        self._embedded = read_embeddings(path)[windows].float()

    def make(self, cut: int, predictor: Predictor, activations: Activations) -> Profile:
        hidden = activations.hidden  # (W, WINDOW, d)
        norms = hidden.norm(dim=2)
        escape_norm = _ESCAPE_RATIO * norms.median().item()
        usual = norms <= escape_norm
        # What the first token of a window sees is unlike all others.
        usual[:, 0] = False
        samples = self._samples(hidden, usual)
        fit = fit_predictor(samples, predictor, self._transform)
        with_gradients = usual[: len(activations.gradients)]
        gradients = activations.gradients[with_gradients]  # (m, DRAWS, d)
        basis = coding_basis(fit.residual, gradients.flatten(0, 1), self._transform)
        sensitive = sensitivity(samples.states[: len(gradients)], samples.mean, gradients)
        components = product(fit.residual, inverse(basis))
        base_step = (components.square().mean().sqrt() / _FINEST).item()
        shifts = (samples.states - samples.mean) @ sensitive[:-1] + sensitive[-1]
        shifts = shifts.clamp(-MAX_SHIFT, MAX_SHIFT).round()
        chosen = torch.linspace(0, len(components) - 1, min(len(components), _TABLE_SAMPLES)).long()
        tables = fit_tables(components[chosen], base_step, shifts[chosen])
        profile = Profile(
            model=self._model,
            cut=cut,
            vocab_size=self._vocab_size,
            predictor=predictor,
            base_step=base_step,
            escape_norm=escape_norm,
            mean=samples.mean,
            offset=fit.offset,
            basis=basis,
            sensitivity=sensitive,
            rates=torch.zeros(kernel.NUM_POINTS),
            gains=torch.ones(kernel.NUM_POINTS),
            token_weight=fit.token_weight,
            token_ids=fit.token_ids,
            token_rows=fit.token_rows,
            state_weight=fit.state_weight,
            tables=tables,
        )
        rated = chosen[:: max(1, len(chosen) // _RATE_SAMPLES)]
        energy = (samples.states - samples.mean).square().sum(1).mean().item()
        return measured(profile, components[rated], shifts[rated], energy)

    def _samples(self, hidden: torch.Tensor, usual: torch.Tensor) -> Samples:
        mean = hidden[usual].mean(0)
        previous = torch.where(usual[..., None], hidden, mean).roll(1, dims=1)
        return Samples(
            states=hidden[usual],
            previous=previous[usual],
            embedded=self._embedded[usual],
            token_ids=self._windows[usual],
            mean=mean,
        )


def measured(
    profile: Profile, components: torch.Tensor, shifts: torch.Tensor, energy: float
) -> Profile:
    """The profile with rates and gains, as components (n, d) and the shifts of their points (n,)
    show them at each point. ``energy``: the mean of ‖x - mean‖²."""
    payload_bytes = 0 if profile.predictor == "none" else 2
    quantization = Quantization(profile, payload_bytes, torch.device("cpu"))
    token_ids = torch.zeros(len(components), dtype=torch.int64)
    residual = product(components, profile.basis.float())
    rates, gains = [], []
    for point in range(kernel.NUM_POINTS):
        points = (point + shifts).long().clamp(0, kernel.NUM_POINTS - 1)
        packets, units = quantization.write(components, points, token_ids)
        decoded = quantization.residual(units, points)
        rates.append(8 * sum(map(len, packets)) / components.numel())
        lost = (residual - decoded).square().sum(1).mean().item() / energy
        gains.append((1 - min(lost, _MAX_LOST)) ** -0.5)
    falling = np.minimum.accumulate(np.array(rates, np.float32))
    return replace(profile, rates=torch.from_numpy(falling), gains=torch.tensor(gains))
