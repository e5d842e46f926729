"""Operating points: a cut and a codec's settings; and what leaves the model at each."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from typing import Any

import torch

from sliceserve.configs import CodecConfig
from sliceserve.evaluation.coding import Runs, Traffic, decode, encode, traffic_of_prompts
from sliceserve.evaluation.model import WholeModel
from sliceserve.evaluation.progress import Progress
from sliceserve.evaluation.prompts import Prompt
from sliceserve.evaluation.rates import finest, has_knob, settings_in_force
from sliceserve.evaluation.states import capture

# Rows on which settings are chosen for a budget, where there are more.
_SAMPLE_ROWS = 8192


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is to be compared: every cut with every codec at every budget, in bits per element on
    the wire. Without budgets the codecs' settings are taken as they are."""

    cuts: Sequence[int]
    codecs: Sequence[CodecConfig]
    budgets: Sequence[float] = ()
    tokens_per_frame: int = 512


@dataclass(frozen=True, slots=True)
class Point:
    """One codec with its settings, at one cut."""

    cut: int
    codec: CodecConfig

    def describe(self, model: WholeModel, traffic: Traffic) -> dict[str, Any]:
        """What a result says of its operating point, and of the bits that it cost."""
        bits = traffic.rate(model.spec.hidden_size)
        return {
            "model": model.name,
            "split": self.cut,
            "codec": model.codec(self.codec, self.cut).wire_id,
            "settings": settings_in_force(self.codec),
            "dtype": model.dtype_name,
            "bits_per_element": bits,
            "packet_bits_per_element": traffic.packet_rate(model.spec.hidden_size),
            "reduction_vs_fp16": 16 / bits,
        }


def choose_points(
    model: WholeModel, prompts: Sequence[Prompt], states: dict[int, torch.Tensor], sweep: Sweep
) -> list[Point]:
    """The operating points of ``sweep``, each once. ``states`` are what enters each cut, the rows
    of ``prompts``; both matter for budgets alone. Raises EvaluationError for a budget that a codec
    cannot keep."""
    size = model.spec.hidden_size

    # Searches for several budgets try the same settings first.
    @cache
    def rate(config: CodecConfig, cut: int) -> float:
        packets = encode(model.codec(config, cut), states[cut], Runs(prompts, with_token_ids=True))
        return traffic_of_prompts(packets, prompts, sweep.tokens_per_frame).rate(size)

    chosen: list[Point] = []
    for cut, codec in product(sweep.cuts, sweep.codecs):
        configs = [codec]
        if sweep.budgets:
            budgets = sweep.budgets if has_knob(codec) else [max(sweep.budgets)]
            configs = [finest(codec, b, size, partial(rate, cut=cut)) for b in budgets]
        chosen += (Point(cut, config) for config in configs)
    return list(dict.fromkeys(chosen))


def choose_on_sample(
    model: WholeModel, prompts: Sequence[Prompt], sweep: Sweep, progress: Progress
) -> list[Point]:
    """``choose_points`` for prompts too many to hold their states: on some from all over them."""
    if not sweep.budgets:
        return choose_points(model, [], {}, sweep)
    num_rows = sum(prompt.num_rows for prompt in prompts)
    sample = prompts[:: max(1, num_rows // _SAMPLE_ROWS)]
    return choose_points(model, sample, capture(model, sample, sweep.cuts, progress), sweep)


def run_coded(
    model: WholeModel,
    prompts: Sequence[Prompt],
    states: torch.Tensor,
    point: Point,
    tokens_per_frame: int,
    progress: Progress,
) -> tuple[torch.Tensor, Traffic]:
    """(T, hidden_size): what leaves the last layer when every row of ``states``, which enter the
    point's cut, has passed through its codec; and what that took on the wire."""
    codec = model.codec(point.codec, point.cut)
    packets = encode(codec, states, Runs(prompts, with_token_ids=True))
    hidden = torch.empty_like(states)
    decode(codec, packets, hidden, Runs(prompts, with_token_ids=False))
    with progress(f"{codec.wire_id} at layer {point.cut}, sequences", len(prompts)) as advance:
        model.run(hidden, point.cut, model.spec.num_layers, prompts, advance)
    return hidden, traffic_of_prompts(packets, prompts, tokens_per_frame)
