"""The scheduling policies against each other, on arrivals from a trace.

One server for each policy, with the same model, stays loaded; they take turns, A B C, B C A, so
that a machine that slows down slows all of them. In a turn every request of the trace comes at its
time, whatever became of those before it, from a split client with a connection of its own. Clients
replay what a real head sent for the same tokens: the server's work is real, the heads' is not there
to compete for the machine. Lengths are the trace's times ``--scale``; its gaps are stretched until
``--rate`` requests a second come, by default ``--load`` of what the server did with all of them at
once. Ratios are against the first policy. The last line is JSON.

    python benchmarks/trace_replay.py azure_llm_2023_conv.csv --turns 3
"""

import argparse
import asyncio
import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from sliceserve.cli import options
from sliceserve.cli.bench.backends import own_server
from sliceserve.cli.bench.goodput import Limits, parse_limits
from sliceserve.cli.bench.open_loop import (
    Turn,
    assign_arrivals,
    record_tokens,
    run_turn,
    summarize_turns,
)
from sliceserve.cli.bench.report import finish, make_table
from sliceserve.cli.bench.trace import Arrival, read_trace, scale_lengths, scale_time, thin
from sliceserve.cli.bench.vectors import cut_of
from sliceserve.cli.console import Working
from sliceserve.cli.signals import end_on_sigterm
from sliceserve.configs import ClientConfig

_POLICIES = "fcfs,prefill-aware,fair,priority"
_NUM_WARM_UP = 8
# A recording begins with a prompt of a few tokens.
_LEAST_PROMPT = 8


async def take_turns(
    config: ClientConfig, arrivals: Sequence[Arrival], given: argparse.Namespace
) -> tuple[float, list[Arrival], dict[str, list[Turn]]]:
    """Requests a second, the arrivals at that rate, and turns by policy."""
    cut = cut_of(config)
    policies = given.policies.split(",")
    turns: dict[str, list[Turn]] = {policy: [] for policy in policies}
    with ExitStack() as stack:
        servers = {}
        for policy in policies:
            with Working(f"Starting a server with policy {policy} …"):
                arguments = ["--policy", policy, *given.serve]
                server = stack.enter_context(own_server(config, [cut], arguments))
            servers[policy] = replace(config, server=server.url, api_key=server.api_key)
        first, *_ = servers.values()
        longest = max(one.num_prompt + one.num_output for one in arrivals)
        recording = await record_tokens(first, cut, longest)
        at_once = [replace(one, start_s=0.0) for one in arrivals]

        async def run(policy: str, some: Sequence[Arrival], label: str) -> Turn:
            server = servers[policy]
            return await run_turn(server, [assign_arrivals(server, recording, some)], label)

        for policy in policies:
            await run(policy, at_once[:_NUM_WARM_UP], f"{policy}, warming up")
        rate = given.rate
        if rate is None:
            all_at_once = await run(policies[0], at_once, "all at once")
            rate = given.load * len(arrivals) / all_at_once.seconds
        arrivals = scale_time(arrivals, rate)
        for number in range(given.turns):
            k = number % len(policies)
            for policy in policies[k:] + policies[:k]:
                turns[policy].append(await run(policy, arrivals, f"turn {number + 1}, {policy}"))
    return rate, arrivals, turns


def compare(
    turns: Mapping[str, Sequence[Turn]],
    arrivals: Sequence[Arrival],
    limits: Limits,
    short_tokens: int,
) -> list[dict[str, Any]]:
    """Figures of each policy over all turns, and ratios against the first policy's; that of the
    short prompts also turn by turn."""

    def figures(some: Sequence[Turn]) -> dict[str, Any]:
        return summarize_turns(some, arrivals, limits, short_tokens)

    def short_p95(result: Mapping[str, Any]) -> float:
        return float(result["short_ttft_ms"]["p95"])

    base_turns, *_ = turns.values()
    base = figures(base_turns)
    results = []
    for policy, own in turns.items():
        result = figures(own)
        by_turn = [
            short_p95(figures([turn])) / short_p95(figures([other]))
            for turn, other in zip(own, base_turns, strict=True)
        ]
        ratios = {
            "short_ttft_p95": short_p95(result) / short_p95(base),
            "short_ttft_p95_by_turn": by_turn,
            "ttft_p95": result["ttft_ms"]["p95"] / base["ttft_ms"]["p95"],
            "tpot_p95": result["tpot_ms"]["p95"] / base["tpot_ms"]["p95"],
            "tokens_per_s": result["tokens_per_s"] / base["tokens_per_s"],
            "goodput": result["goodput_rps"] / max(base["goodput_rps"], 1e-9),
        }
        results.append({"policy": policy, **result, "ratios": ratios})
    return results


def make_tables(results: Sequence[dict[str, Any]], title: str) -> list[Table]:
    columns = ["policy", "TTFT p50", "p95", "p99", "short p50", "short p95", "long p95"]
    waiting = [
        [
            one["policy"],
            *(one["ttft_ms"][name] for name in ("p50", "p95", "p99")),
            *(one["short_ttft_ms"][name] for name in ("p50", "p95")),
            (one["long_ttft_ms"] or {}).get("p95"),
        ]
        for one in results
    ]
    more = ["policy", "TPOT p50", "p95", "good/s", "good", "tokens/s", "busy", "failed"]
    rates = [
        [
            one["policy"],
            *(one["tpot_ms"][name] for name in ("p50", "p95")),
            one["goodput_rps"],
            f"{one['good_share']:.0%}",
            one["tokens_per_s"],
            f"{one['server_busy_share']:.0%}",
            sum(one["errors"].values()),
        ]
        for one in results
    ]
    return [make_table(title, columns, waiting), make_table("", more, rates)]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path, help="CSV with t_s, input_tokens, output_tokens")
    parser.add_argument("--policies", default=_POLICIES, help=f"default: {_POLICIES}")
    parser.add_argument("--num-requests", type=int, default=80, help="of a turn")
    parser.add_argument("--share", type=float, default=0.1, help="of the trace, drawn by chance")
    parser.add_argument("--scale", type=float, default=0.25, help="of prompts and answers")
    parser.add_argument("--load", type=float, default=0.8, help="of the server's capacity")
    parser.add_argument("--rate", type=float, help="requests a second, in place of --load")
    parser.add_argument(
        "--goodput", type=parse_limits, default="ttft:2000,tpot:200", help="milliseconds"
    )
    parser.add_argument("--short", type=int, help="longest short prompt (default: the median)")
    parser.add_argument("--turns", type=int, default=3, help="how often each policy has its turn")
    parser.add_argument("--seed", type=int, default=0, help="of the share that is drawn")
    parser.add_argument("--model", help="as for the commands (default: the default model)")
    parser.add_argument("--dtype", help="as for the commands (default: auto)")
    parser.add_argument("--split", type=int, help="the cut (default: the middle one)")
    parser.add_argument("--codec", help="as for the commands (default: calibrated)")
    parser.add_argument(
        "--serve", type=shlex.split, default="", help="options for `sliceserve serve`"
    )
    return parser.parse_args()


def main() -> None:
    end_on_sigterm()
    given = parse()
    config = options.client_config(
        None, model=given.model, dtype=given.dtype, split=given.split, codec=given.codec
    )
    arrivals = thin(read_trace(given.trace), given.share, given.num_requests, given.seed)
    arrivals = scale_lengths(arrivals, given.scale, _LEAST_PROMPT)
    short_tokens = given.short or int(median(one.num_prompt for one in arrivals))
    rate, arrivals, turns = asyncio.run(take_turns(config, arrivals, given))
    results = compare(turns, arrivals, given.goodput, short_tokens)
    prompts = [one.num_prompt for one in arrivals]
    result = {
        "model": config.model.model,
        "trace": given.trace.name,
        "num_requests": len(arrivals),
        "num_turns": given.turns,
        "rate_rps": rate,
        "prompt_tokens": {"median": median(prompts), "max": max(prompts)},
        "output_tokens": median(one.num_output for one in arrivals),
        "short_tokens": short_tokens,
        "limits_ms": {"ttft": given.goodput.ttft_ms, "tpot": given.goodput.tpot_ms},
        "policies": results,
    }
    title = (
        f"{len(arrivals)} requests of {given.trace.name} × {given.turns} turns, {rate:.2f} a "
        f"second, prompts of {median(prompts):g} tokens (at most {max(prompts)}), short up to "
        f"{short_tokens}; milliseconds"
    )
    finish([result], True, *make_tables(results, title))


if __name__ == "__main__":
    main()
