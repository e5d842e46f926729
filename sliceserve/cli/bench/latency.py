"""How long one stream waits for its tokens, and where a split token's time goes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.table import Table

from sliceserve.cli.bench.backends import Backend, SplitBackend, stats_between
from sliceserve.cli.bench.codec import measure_codec
from sliceserve.cli.bench.measure import measure_each, measure_work, split_cost
from sliceserve.cli.bench.options import BackendName
from sliceserve.cli.bench.report import make_table
from sliceserve.cli.bench.vectors import model_states
from sliceserve.cli.bench.workload import OnToken, Workload
from sliceserve.client.stats import RequestStats
from sliceserve.configs import ClientConfig

_CODEC_REPEATS = 50
_CODEC_TOKENS = 8


async def run(
    names: Sequence[BackendName], config: ClientConfig, work: Workload
) -> list[dict[str, Any]]:
    """One result a backend, in order."""
    return await measure_each(names, config, work, 1, measure_stream)


async def measure_stream(
    backend: Backend,
    config: ClientConfig,
    work: Workload,
    concurrency: int = 1,
    on_token: OnToken = lambda: None,
) -> dict[str, Any]:
    """Run ``work`` on a backend that is warm; of a split one, tell where a token's time goes.
    ``concurrency`` must be 1: with more, the parts of a token's time overlap."""
    if not isinstance(backend, SplitBackend) or work.output_len < 2:
        return await measure_work(backend, config, work, concurrency, on_token)
    watch = _DecodeWatch(backend, work.output_len, on_token)
    result = await measure_work(backend, config, work, concurrency, watch.on_token)
    tpot_ms = result["tpot_ms"]["mean"]
    return result | {"decode": await _decode_ms(watch.decode, tpot_ms, backend, config)}


class _DecodeWatch:
    """Adds up what the tokens after the first of each request cost. For one stream."""

    def __init__(self, backend: SplitBackend, output_len: int, on_token: OnToken) -> None:
        self.decode = RequestStats()
        self._backend = backend
        self._output_len = output_len
        self._on_token = on_token
        self._num_seen = 0
        self._at_first = RequestStats()

    def on_token(self) -> None:
        self._on_token()
        self._num_seen += 1
        if self._num_seen % self._output_len == 1:
            self._at_first = self._backend.stats
        elif self._num_seen % self._output_len == 0:
            self.decode.add(stats_between(self._at_first, self._backend.stats))


async def _decode_ms(
    cost: RequestStats, tpot_ms: float, backend: SplitBackend, config: ClientConfig
) -> dict[str, float]:
    """Where the time between two tokens goes, in milliseconds; the parts add up to ``tpot_ms``.

    The codec's part of the head is measured by itself, after the run.
    """
    parts = split_cost(cost, backend.hidden_size)
    head_ms, server_ms = parts["head_ms_per_token"], parts["server_ms_per_token"]
    link_ms = parts["link_ms_per_token"]
    vectors, token_ids = await model_states(replace(config, split=backend.split), _CODEC_TOKENS)
    codec = backend.encoder(config)
    measured = measure_codec(codec, vectors, _CODEC_REPEATS, token_ids)
    encode_ms = measured["encode_us"] / 1e3
    return {
        "tpot_ms": tpot_ms,
        "head_layers_ms": head_ms - encode_ms,
        "encode_ms": encode_ms,
        "server_ms": server_ms,
        "link_ms": link_ms,
        "client_ms": tpot_ms - head_ms - server_ms - link_ms,
    }


def tables(results: Sequence[dict[str, Any]]) -> list[Table]:
    first = results[0]
    title = (
        f"one stream, {first['num_prompts']} × ({first['input_len']} + {first['output_len']}) "
        f"tokens, {first['model']} in {first['dtype']}; milliseconds"
    )
    columns = ["", "mean", "p50", "p95", "p99"]
    rows = [
        [f"{result['backend']} {name.upper()}", *(result[f"{name}_ms"] or {}).values()]
        for result in results
        for name in ("ttft", "tpot", "itl")
    ]
    costs = [_decode_table(result) for result in results if "decode" in result]
    return [make_table(title, columns, rows), *costs]


def _decode_table(result: dict[str, Any]) -> Table:
    decode = result["decode"]
    words = {
        "head_layers_ms": "first layers, here",
        "encode_ms": "codec, here",
        "link_ms": "link and the server's queues",
        "server_ms": "other layers, on the server",
        "client_ms": "between engine, event loop and caller, here",
        "tpot_ms": "TPOT",
    }
    rows = [
        (text, decode[name], f"{decode[name] / decode['tpot_ms']:.0%}")
        for name, text in words.items()
    ]
    title = f"a token's time, cut at layer {result['split']}, {result['codec']}"
    return make_table(title, ["", "ms", "share"], rows)
