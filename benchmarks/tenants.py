"""What a tenant feels of another that floods the server, under first come first served and fair
share.

The quiet tenant sends one request after a while, and another, whatever became of those before. The
flooding one keeps ``--flood`` requests at the server all the time. One server for each policy stays
loaded. In a turn the quiet tenant is alone on the fair server, then beside the flood on that one,
then beside it on the other. Clients replay what a real head sent. The last line is JSON, with the
quiet tenant's p95 TTFT beside the flood over that alone.

    python benchmarks/tenants.py --turns 2
"""

import argparse
import asyncio
import random
import secrets
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import yaml

from sliceserve.cli import options
from sliceserve.cli.bench.backends import own_server
from sliceserve.cli.bench.fleet_messages import Assignment, Client, Recording
from sliceserve.cli.bench.goodput import Limits
from sliceserve.cli.bench.open_loop import (
    Turn,
    assign_arrivals,
    record_tokens,
    run_turn,
    summarize_turns,
)
from sliceserve.cli.bench.report import finish, make_table
from sliceserve.cli.bench.trace import Arrival
from sliceserve.cli.bench.vectors import cut_of
from sliceserve.cli.console import Working
from sliceserve.cli.signals import end_on_sigterm
from sliceserve.configs import ClientConfig

_QUIET, _FLOOD = "quiet", "flood"
_CASES = {"alone": ("fair", 0), "fair": ("fair", 1), "fcfs": ("fcfs", 1)}
# More requests than a flooding client can have answered before it stops.
_ENDLESS = 10_000


@dataclass(frozen=True)
class Tenants:
    """Settings for the clients of each tenant on one server."""

    quiet: ClientConfig
    flood: ClientConfig


@contextmanager
def server_of_two(
    config: ClientConfig, cut: int, policy: str, serve: Sequence[str]
) -> Iterator[Tenants]:
    keys = {name: secrets.token_urlsafe() for name in (_QUIET, _FLOOD)}
    settings = {"tenants": [{"name": name, "api_keys": [key]} for name, key in keys.items()]}
    with tempfile.TemporaryDirectory() as folder, Working(f"Starting a {policy} server …"):
        path = Path(folder) / "tenants.yaml"
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        arguments = ["--config", str(path), "--policy", policy, *serve]
        with own_server(config, [cut], arguments) as server:
            there = replace(config, server=server.url)
            yield Tenants(*(replace(there, api_key=keys[name]) for name in (_QUIET, _FLOOD)))


def now_and_then(
    num_requests: int, gap_s: float, num_prompt: int, num_output: int, seed: int
) -> list[Arrival]:
    """Requests with gaps from half to one and a half of ``gap_s``, a gap before the first too."""
    draw = random.Random(seed)
    arrivals: list[Arrival] = []
    time_s = 0.0
    for _ in range(num_requests):
        time_s += gap_s * draw.uniform(0.5, 1.5)
        arrivals.append(Arrival(time_s, num_prompt, num_output))
    return arrivals


def flood(config: ClientConfig, quiet: Assignment, num_clients: int) -> Assignment:
    """Clients that send a request as soon as the one before it has ended, until the last of
    ``quiet`` has come; numbered after its clients."""
    stop_s = max(client.start_s for client in quiet.clients)
    clients = [
        Client(
            index=len(quiet.clients) + i,
            cut=quiet.recordings[0].cut,
            replays=[0] * _ENDLESS,
            stop_s=stop_s,
        )
        for i in range(num_clients)
    ]
    return msgspec.structs.replace(
        quiet, config=config, clients=clients, recordings=quiet.recordings[:1]
    )


async def run_case(
    name: str,
    servers: Mapping[str, Tenants],
    recording: Recording,
    arrivals: Sequence[Arrival],
    num_flooding: int,
) -> tuple[Turn, Turn]:
    """The quiet tenant's part of a run, and the other's."""
    policy, is_flooded = _CASES[name]
    tenants = servers[policy]
    quiet = assign_arrivals(tenants.quiet, recording, arrivals)
    others = [flood(tenants.flood, quiet, num_flooding)] if is_flooded else []
    turn = await run_turn(tenants.quiet, [quiet, *others], name)
    own = [one for one in turn.outcomes if one.client < len(arrivals)]
    rest = [one for one in turn.outcomes if one.client >= len(arrivals)]
    return replace(turn, outcomes=own), replace(turn, outcomes=rest)


async def take_turns(
    config: ClientConfig, given: argparse.Namespace
) -> tuple[float, dict[str, list[Turn]]]:
    """The gap between the quiet tenant's requests, and its turns by case; those of the flood under
    the case's name and "flood"."""
    cut = cut_of(config)
    lengths = (given.input_len, given.output_len)
    turns: dict[str, list[Turn]] = {}
    with ExitStack() as stack:
        servers = {
            policy: stack.enter_context(server_of_two(config, cut, policy, given.serve))
            for policy in ("fair", "fcfs")
        }
        recording = await record_tokens(servers["fair"].quiet, cut, sum(lengths))
        gap_s = given.gap
        for policy, tenants in servers.items():
            # Both warm up; twice, as the first request pays for what happens once.
            for _ in range(2):
                one = assign_arrivals(tenants.quiet, recording, [Arrival(0.0, *lengths)])
                seconds = (await run_turn(tenants.quiet, [one], f"{policy}, one")).seconds
            gap_s = gap_s or 3 * seconds
        for number in range(given.turns):
            arrivals = now_and_then(given.num_requests, gap_s, *lengths, seed=number)
            for name in _CASES:
                own, rest = await run_case(name, servers, recording, arrivals, given.flood)
                turns.setdefault(name, []).append(own)
                turns.setdefault(f"{name} flood", []).append(rest)
    return gap_s, turns


def compare(turns: Mapping[str, Sequence[Turn]], arrivals: Sequence[Arrival]) -> dict[str, Any]:
    """Figures of each case, and p95 TTFTs over that alone: over all turns, and turn by turn."""

    def figures(some: Sequence[Turn]) -> dict[str, Any]:
        longest = max(one.num_prompt for one in arrivals)
        return summarize_turns(some, arrivals, Limits(), short_tokens=longest)

    def p95(some: Sequence[Turn]) -> float:
        return float(figures(some)["ttft_ms"]["p95"])

    alone = turns["alone"]
    result: dict[str, Any] = {}
    for name in _CASES:
        own, rest = turns[name], turns[f"{name} flood"]
        seconds = sum(turn.seconds for turn in rest)
        num_tokens = sum(len(one.timeline.tokens) for turn in rest for one in turn.outcomes)
        result[name] = {
            **{key: figures(own)[key] for key in ("ttft_ms", "tpot_ms", "errors")},
            "server_busy_share": figures(own)["server_busy_share"],
            "flood_tokens_per_s": num_tokens / seconds,
            "p95_vs_alone": p95(own) / p95(alone),
            "p95_vs_alone_by_turn": [
                p95([turn]) / p95([other]) for turn, other in zip(own, alone, strict=True)
            ],
        }
    return result


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-requests", type=int, default=20, help="quiet ones, each turn")
    parser.add_argument("--flood", type=int, default=32, help="requests of the other at once")
    parser.add_argument("--input-len", type=int, default=512, help="tokens of every prompt")
    parser.add_argument("--output-len", type=int, default=16, help="tokens of every answer")
    parser.add_argument("--gap", type=float, help="mean seconds between quiet requests")
    parser.add_argument("--turns", type=int, default=2, help="how often each case has its turn")
    parser.add_argument("--model", help="as for the commands (default: the default model)")
    parser.add_argument("--dtype", help="as for the commands (default: auto)")
    parser.add_argument("--split", type=int, help="the cut (default: the middle one)")
    parser.add_argument("--codec", help="as for the commands (default: calibrated)")
    parser.add_argument(
        "--serve",
        type=shlex.split,
        default="--target-itl-ms 150",
        help="options for `sliceserve serve` (default: --target-itl-ms 150)",
    )
    return parser.parse_args()


def main() -> None:
    end_on_sigterm()
    given = parse()
    config = options.client_config(
        None, model=given.model, dtype=given.dtype, split=given.split, codec=given.codec
    )
    gap_s, turns = asyncio.run(take_turns(config, given))
    lengths = (given.input_len, given.output_len)
    cases = compare(turns, now_and_then(given.num_requests, gap_s, *lengths, seed=0))
    result = {
        "model": config.model.model,
        "num_requests": given.num_requests,
        "num_turns": given.turns,
        "flood": given.flood,
        "input_len": given.input_len,
        "output_len": given.output_len,
        "gap_s": gap_s,
        "serve": given.serve,
        "cases": cases,
    }
    columns = ["the quiet tenant", "TTFT p50", "p95", "TPOT p50", "flood tokens/s", "p95 × alone"]
    rows = [
        [
            "alone" if name == "alone" else f"beside the flood, {name}",
            *(one["ttft_ms"][key] for key in ("p50", "p95")),
            one["tpot_ms"]["p50"],
            one["flood_tokens_per_s"],
            one["p95_vs_alone"],
        ]
        for name, one in cases.items()
    ]
    title = (
        f"{given.num_requests} requests × {given.turns} turns, one every {gap_s:.1f} s, of "
        f"{given.input_len} + {given.output_len} tokens; {given.flood} of the flood at once; "
        "milliseconds"
    )
    finish([result], True, make_table(title, columns, rows))


if __name__ == "__main__":
    main()
