"""The setting of a codec that buys quality with bits, and the finest one that a budget pays for."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from sliceserve.configs import CodecConfig
from sliceserve.evaluation.errors import EvaluationError

# The calibrated codec takes any number of bits up to 8; this many of them are tried.
_STEPS_PER_BIT = 64


@dataclass(frozen=True, slots=True)
class _Knob:
    """A family's settings from the coarsest, 0, to the finest: more bits and less error.

    ``num_settings`` is for a hidden size, ``turn`` gives a config at one of them.
    """

    num_settings: Callable[[int], int]
    turn: Callable[[CodecConfig, int, int], CodecConfig]


def _keep(config: CodecConfig, setting: int, hidden_size: int) -> CodecConfig:
    """``setting`` + 1 elements survive SLICER's filter."""
    slicer = replace(config.slicer, sparsity=1 - (setting + 1) / hidden_size)
    return replace(config, slicer=slicer)


def _quantize(config: CodecConfig, setting: int, hidden_size: int) -> CodecConfig:
    """A grid of ``setting`` + 2 levels."""
    return replace(config, rans=replace(config.rans, num_levels=setting + 2))


def _aim(config: CodecConfig, setting: int, hidden_size: int) -> CodecConfig:
    """A mean size of a packet, and neither a cap nor a bound on the error of single ones."""
    calibrated = replace(
        config.calibrated,
        bits_per_element=(setting + 1) / _STEPS_PER_BIT,
        bits_per_token=None,
        distortion=None,
    )
    return replace(config, calibrated=calibrated)


# A codec that is not here has one rate.
_KNOBS = {
    "slicer": _Knob(num_settings=lambda hidden_size: hidden_size, turn=_keep),
    "rans": _Knob(num_settings=lambda hidden_size: 255, turn=_quantize),
    "calibrated": _Knob(num_settings=lambda hidden_size: 8 * _STEPS_PER_BIT, turn=_aim),
}


def settings_in_force(config: CodecConfig) -> dict[str, Any]:
    """The settings of the codec that ``config`` names, by name."""
    own = getattr(config, config.name, None)
    return {} if own is None else asdict(own)


def has_knob(config: CodecConfig) -> bool:
    """Whether the codec has more than one rate."""
    return config.name in _KNOBS


def finest(
    config: CodecConfig, budget: float, hidden_size: int, measure: Callable[[CodecConfig], float]
) -> CodecConfig:
    """``config`` at the finest setting of its codec's knob that costs at most ``budget``.

    Budget and ``measure`` are in bits per element. Raises EvaluationError where even the coarsest
    setting, or the only one, costs more.
    """
    knob = _KNOBS.get(config.name)
    if knob is None:
        if (cost := measure(config)) > budget:
            raise EvaluationError(
                f"{config.name} has one rate, {cost:.2f} bits per element on this data, which is "
                f"more than the {budget:g} asked for; raise --bits-per-element or leave it out"
            )
        return config

    def at(setting: int) -> CodecConfig:
        return knob.turn(config, setting, hidden_size)

    if (cost := measure(at(0))) > budget:
        raise EvaluationError(
            f"{config.name} takes at least {cost:.2f} bits per element on this data, which is "
            f"more than the {budget:g} asked for; raise --bits-per-element"
        )
    num_settings = knob.num_settings(hidden_size)
    return at(_last_within(budget, lambda setting: measure(at(setting)), cost, num_settings))


def _last_within(
    budget: float, cost_of: Callable[[int], float], lowest: float, num_settings: int
) -> int:
    """The last setting, of rising costs, that is within the budget as 0 is at cost ``lowest``.

    Each look costs seconds: costs rise about evenly, so the next place to look is interpolated;
    it is the middle where that has not halved what is left, or the upper cost is not known.
    """
    # ``low`` is within the budget, ``high`` is beyond it or does not exist.
    low, high = 0, num_settings
    low_cost, high_cost = lowest, math.inf
    interpolates = False
    while (left := high - low) > 1:
        share = (budget - low_cost) / (high_cost - low_cost) if interpolates else 0.5
        place = min(max(low + round(share * left), low + 1), high - 1)
        if (cost := cost_of(place)) <= budget:
            low, low_cost = place, cost
        else:
            high, high_cost = place, cost
        interpolates = high_cost < math.inf and (2 * (high - low) <= left or not interpolates)
    return low
