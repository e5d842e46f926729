"""Tokens per second, for many prompts at once."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from sliceserve.cli.bench.measure import measure_each, measure_work
from sliceserve.cli.bench.options import BackendName
from sliceserve.cli.bench.report import make_table
from sliceserve.cli.bench.workload import Workload
from sliceserve.configs import ClientConfig


async def run(
    names: Sequence[BackendName], config: ClientConfig, work: Workload, concurrency: int
) -> list[dict[str, Any]]:
    """One result a backend, in order; ``speedup`` is against the first."""
    results = await measure_each(names, config, work, concurrency, measure_work)
    first = results[0]["tokens_per_s"]
    return [result | {"speedup": result["tokens_per_s"] / first} for result in results]


def tables(results: Sequence[dict[str, Any]]) -> list[Table]:
    first = results[0]
    title = (
        f"{first['num_prompts']} prompts, {first['concurrency']} at a time, "
        f"{first['input_len']} + {first['output_len']} tokens, {first['model']} in {first['dtype']}"
    )
    columns = ["backend", "tokens/s", "with prompts", "TTFT ms", "TPOT ms", "speedup"]
    rows = [
        [
            result["backend"],
            result["tokens_per_s"],
            result["total_tokens_per_s"],
            *((result[name] or {}).get("p50") for name in ("ttft_ms", "tpot_ms")),
            result["speedup"],
        ]
        for result in results
    ]
    costs = [_cost_table(result) for result in results if "split" in result]
    return [make_table(title, columns, rows), *costs]


def _cost_table(result: dict[str, Any]) -> Table:
    rows = [
        ("bytes up per hidden state", result["uplink_bytes_per_token"]),
        ("times fewer than fp16", result["uplink_reduction_vs_fp16"]),
        ("busy here, ms per token of the answers", result["head_ms_per_token"]),
        ("busy server, ms per token of the answers", result["server_ms_per_token"]),
        ("link and queues, ms per token of the answers", result["link_ms_per_token"]),
    ]
    title = f"cut at layer {result['split']}, {result['codec']} on the wire"
    return make_table(title, ["what the cut costs", ""], rows)
