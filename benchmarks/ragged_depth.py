"""What it costs to mix cuts in one forward pass.

A mixed batch holds equally many requests at every cut. Two predictions of its time come from
batches of one cut each:

- by stages: the pass has w rows in the layers between two cuts, so these take what separates the
  times of w rows at either cut;
- by work: uniform batches with as many rows times layers as the mixed one take as long, on average.

The first says what mixing costs: more stages, tables for more segments, rows that join on the way.
The second also tells narrow layers from wide ones, which a machine that is bound by reading weights
runs at one price. All batches take turns, ratios are medians over the turns, the last line is JSON.
Rows enter as float32 packets or token ids; none is sampled.

    python benchmarks/ragged_depth.py --turns 15
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from time import perf_counter
from typing import Any

import torch

from sliceserve.cli import options
from sliceserve.cli.bench.options import numbers
from sliceserve.cli.bench.report import finish, make_table
from sliceserve.cli.console import progress
from sliceserve.configs import ModelConfig
from sliceserve.engine.build import pick_device, pick_dtype
from sliceserve.engine.kv_cache import KVCache, plan_segments
from sliceserve.engine.layers import Layers
from sliceserve.engine.runner import Runner
from sliceserve.models.decoder import Decoder
from sliceserve.models.resolve import resolve_model
from sliceserve.models.spec import ModelSpec
from sliceserve.scheduler.blocks import Segment
from sliceserve.scheduler.plan import ScheduledRequest, StepPlan

_BLOCK_SIZE = 16
_CODEC = "float32/1"
# Requests of a batch, by their cut.
Mix = Mapping[int, int]


@dataclass(frozen=True)
class Shape:
    """``num_requests`` at every cut, each with ``num_rows`` rows at the end of its context."""

    num_requests: int
    num_rows: int
    context_len: int


def mixed(cuts: Sequence[int], shape: Shape) -> Mix:
    return dict.fromkeys(cuts, shape.num_requests)


def layer_requests(mix: Mix, num_layers: int) -> int:
    return sum(count * (num_layers - cut) for cut, count in mix.items())


def of_equal_work(mix: Mix, cut: int, num_layers: int) -> int:
    """How many requests at ``cut`` have about as many layers to pass, all together."""
    return max(1, round(layer_requests(mix, num_layers) / (num_layers - cut)))


def widths(mix: Mix) -> dict[int, int]:
    """Requests in the layers from each cut to the next."""
    cuts = sorted(mix)
    return dict(zip(cuts, accumulate(mix[cut] for cut in cuts), strict=True))


def uniform_batches(mix: Mix, num_layers: int) -> list[tuple[int, int]]:
    """Cut and number of requests of all batches that the predictions need."""
    wide = widths(mix)
    steps = [(cut, wide[below]) for below, above in pairwise(sorted(mix)) for cut in (below, above)]
    top = max(mix)
    equal = [(cut, of_equal_work(mix, cut, num_layers)) for cut in mix]
    return list(dict.fromkeys([*steps, (top, wide[top]), *equal]))


def predict_by_stages(mix: Mix, seconds: Mapping[tuple[int, int], float]) -> float:
    """Seconds of the mixed batch from ``seconds`` of uniform ones, by cut and requests."""
    wide, top = widths(mix), max(mix)
    steps = [
        seconds[below, wide[below]] - seconds[above, wide[below]]
        for below, above in pairwise(sorted(mix))
    ]
    return sum(steps) + seconds[top, wide[top]]


def predict_by_work(mix: Mix, num_layers: int, seconds: Mapping[tuple[int, int], float]) -> float:
    rates = [
        seconds[cut, count] / layer_requests({cut: count}, num_layers)
        for cut in mix
        for count in [of_equal_work(mix, cut, num_layers)]
    ]
    return statistics.mean(rates) * layer_requests(mix, num_layers)


class Passes:
    """A whole model, and forward passes over batches of any mix."""

    def __init__(self, config: ModelConfig, cuts: Sequence[int], max_requests: int, shape: Shape):
        path = resolve_model(config.model, config.trust_remote_code)
        self.spec = spec = ModelSpec.load(path)
        self._device, dtype = pick_device(config), pick_dtype(config)
        decoder = Decoder.load(path, spec, 0, spec.num_layers, dtype, self._device)
        self._blocks_each = -(-shape.context_len // _BLOCK_SIZE)
        num_blocks = max_requests * self._blocks_each
        layers = plan_segments(0, spec.num_layers, list(cuts))
        self._segments = [Segment(first, stop, num_blocks) for first, stop in layers]
        cache = KVCache(self._segments, _BLOCK_SIZE, spec, dtype, self._device)
        for layer in range(spec.num_layers):
            for part in cache[layer]:
                part.normal_()
        max_rows = max_requests * shape.num_rows
        self._runner = Runner(Layers(decoder, cache, self._segments, _BLOCK_SIZE), max_rows)
        self._shape = shape
        hidden = torch.randn(shape.num_rows, spec.hidden_size)
        self._packets = self._runner.codec(_CODEC).encode(hidden)

    def seconds(self, mix: Mix) -> float:
        """Of one pass."""
        plan = StepPlan([r for cut in sorted(mix) for r in self._requests(cut, mix)])
        started = perf_counter()
        self._runner.run(plan)
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return perf_counter() - started

    def _requests(self, cut: int, mix: Mix) -> list[ScheduledRequest]:
        first = sum(count for below, count in mix.items() if below < cut)
        return [self._request(cut, first + i) for i in range(mix[cut])]

    def _request(self, cut: int, index: int) -> ScheduledRequest:
        n, shape = self._blocks_each, self._shape
        table = list(range(index * n, (index + 1) * n))
        return ScheduledRequest(
            request_id=str(index),
            entry_layer=cut,
            start=shape.context_len - shape.num_rows,
            inputs=[index] * shape.num_rows if cut == 0 else self._packets,
            block_tables=[table if cut < one.stop else [] for one in self._segments],
            codec=_CODEC,
        )


def measure(
    config: ModelConfig, cuts: Sequence[int], shape: Shape, num_turns: int
) -> dict[str, Any]:
    mix = mixed(cuts, shape)
    num_layers = ModelSpec.load(resolve_model(config.model)).num_layers
    uniform = uniform_batches(mix, num_layers)
    most = max(sum(mix.values()), *(count for _, count in uniform))
    passes = Passes(config, cuts, most, shape)
    turns: list[tuple[float, dict[tuple[int, int], float]]] = []
    with progress("passes", (num_turns + 1) * (len(uniform) + 1)) as advance:
        for _ in range(num_turns + 1):
            taken = passes.seconds(mix)
            advance()
            alone = {}
            for cut, count in uniform:
                alone[cut, count] = passes.seconds({cut: count})
                advance()
            turns.append((taken, alone))
    return summarize(mix, num_layers, shape, turns[1:])


def summarize(
    mix: Mix,
    num_layers: int,
    shape: Shape,
    turns: Sequence[tuple[float, Mapping[tuple[int, int], float]]],
) -> dict[str, Any]:
    """Medians over turns: seconds of the mixed batch, and of the uniform ones."""
    by_stages = [predict_by_stages(mix, alone) for _, alone in turns]
    by_work = [predict_by_work(mix, num_layers, alone) for _, alone in turns]
    taken = [seconds for seconds, _ in turns]
    return {
        "requests_per_cut": shape.num_requests,
        "rows_per_request": shape.num_rows,
        "context_len": shape.context_len,
        "layer_rows": layer_requests(mix, num_layers) * shape.num_rows,
        "mixed_ms": 1e3 * statistics.median(taken),
        "predicted_by_stages_ms": 1e3 * statistics.median(by_stages),
        "predicted_by_work_ms": 1e3 * statistics.median(by_work),
        "mixed_vs_stages": statistics.median(t / p for t, p in zip(taken, by_stages, strict=True)),
        "mixed_vs_work": statistics.median(t / p for t, p in zip(taken, by_work, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="as for the commands (default: the default model)")
    parser.add_argument("--dtype", help="as for the commands (default: auto)")
    parser.add_argument("--device", help="as for the commands (default: auto)")
    parser.add_argument("--cuts", default="0,8,15,22", help="entry layers, 0 for thin clients")
    parser.add_argument("--requests-per-cut", type=int, default=16, help="of the decode batch")
    parser.add_argument("--prompt-rows", type=int, default=64, help="of a prefill at each cut")
    parser.add_argument("--context-len", type=int, default=128, help="tokens of every request")
    parser.add_argument("--turns", type=int, default=15, help="how often each batch runs")
    given = parser.parse_args()
    model = options.client_config(
        None, model=given.model, dtype=given.dtype, device=given.device
    ).model
    cuts = numbers(given.cuts)
    shapes = [
        Shape(given.requests_per_cut, 1, given.context_len),
        Shape(1, given.prompt_rows, given.context_len),
    ]
    results = [measure(model, cuts, shape, given.turns) for shape in shapes]
    result = {
        "model": model.model,
        "dtype": str(pick_dtype(model)).removeprefix("torch."),
        "device": pick_device(model).type,
        "cuts": cuts,
        "num_turns": given.turns,
        "batches": results,
    }
    columns = ["", *(f"{s.num_requests} × {s.num_rows} rows a cut" for s in shapes)]
    rows = [[name, *(one[name] for one in results)] for name in results[0]]
    title = f"cuts {given.cuts} in one pass, {result['model']} in {result['dtype']}"
    finish([result], True, make_table(title, columns, rows))


if __name__ == "__main__":
    main()
