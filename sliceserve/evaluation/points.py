"""Operating points: a cut and a codec's settings; and what leaves the model at each."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch

from sliceserve.configs import CodecConfig
from sliceserve.evaluation.coding import Rate, decode, encode, measure_rate
from sliceserve.evaluation.model import WholeModel
from sliceserve.evaluation.progress import Progress
from sliceserve.evaluation.prompts import Prompt
from sliceserve.evaluation.rates import finest, settings_in_force


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
    """One codec with its settings at one cut, and what it costs on the data at hand."""

    cut: int
    codec: CodecConfig
    rate: Rate

    def describe(self, model: WholeModel) -> dict[str, Any]:
        return {
            "model": model.name,
            "split": self.cut,
            "codec": model.codec(self.codec, self.cut).wire_id,
            "settings": settings_in_force(self.codec),
            "dtype": model.dtype_name,
            "bits_per_element": self.rate.wire,
            "packet_bits_per_element": self.rate.packets,
            "reduction_vs_fp16": 16 / self.rate.wire,
        }


def choose_points(
    model: WholeModel, prompts: Sequence[Prompt], states: dict[int, torch.Tensor], sweep: Sweep
) -> list[Point]:
    """The operating points of ``sweep``, each once. ``states`` are what enters each cut, the rows
    of ``prompts``. Raises EvaluationError for a budget that a codec cannot keep."""
    chosen: dict[tuple[int, CodecConfig], Point] = {}

    size = model.spec.hidden_size

    def rate(config: CodecConfig, cut: int) -> Rate:
        packets = encode(model.codec(config, cut), states[cut], prompts)
        return measure_rate(packets, prompts, size, sweep.tokens_per_frame)

    def wire(config: CodecConfig, cut: int) -> float:
        return rate(config, cut).wire

    for cut, codec in product(sweep.cuts, sweep.codecs):
        configs = [codec]
        if sweep.budgets:
            configs = [finest(codec, b, size, partial(wire, cut=cut)) for b in sweep.budgets]
        for config in dict.fromkeys(configs):
            chosen[cut, config] = Point(cut, config, rate(config, cut))
    return list(chosen.values())


def run_coded(
    model: WholeModel,
    prompts: Sequence[Prompt],
    states: torch.Tensor,
    point: Point,
    progress: Progress,
) -> torch.Tensor:
    """(T, hidden_size): what leaves the last layer when every row of ``states``, which enter the
    point's cut, has passed through its codec."""
    codec = model.codec(point.codec, point.cut)
    hidden = torch.empty_like(states)
    decode(codec, encode(codec, states, prompts), hidden, prompts)
    with progress(f"{codec.wire_id} at layer {point.cut}, sequences", len(prompts)) as advance:
        model.run(hidden, point.cut, model.spec.num_layers, prompts, advance)
    return hidden
