"""Many split clients at once against one server."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from rich.table import Table

from sliceserve.cli.bench.backends import own_server
from sliceserve.cli.bench.fleet import start_fleet
from sliceserve.cli.bench.fleet_messages import Assignment, Client, Outcome, Recording
from sliceserve.cli.bench.replay import record
from sliceserve.cli.bench.report import make_table
from sliceserve.cli.bench.server_figures import counters, read
from sliceserve.cli.bench.timeline import latencies
from sliceserve.cli.bench.workload import Workload, vocab_size
from sliceserve.cli.console import Working, progress
from sliceserve.configs import ClientConfig

_DEFAULT_MAX_REQUESTS = 1024


class _ServerInfo(msgspec.Struct):
    """What is read of /v1/split/info."""

    cuts: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """``num_clients`` connections, spread over ``num_processes``, use the cuts in ``splits`` in
    turn (none: all that the server offers). ``num_recordings`` prompts for each cut are recorded
    and replayed; 0: every client runs the first layers."""

    num_clients: int
    requests_per_client: int
    splits: tuple[int, ...] = ()
    num_processes: int = 1
    num_recordings: int = 0


async def run(config: ClientConfig, work: Workload, load: Load, own: bool) -> dict[str, Any]:
    """Put ``load`` on the server of ``config``, or with ``own`` on one that is started for it.
    ``work`` has a prompt for each request."""
    async with AsyncExitStack() as stack:
        if own:
            with Working(f"Starting a server for {config.model.model} …"):
                config = await stack.enter_async_context(_own(config, load))
        info = await read(config, "/v1/split/info")
        cuts = load.splits or tuple(msgspec.json.decode(info, type=_ServerInfo).cuts)
        prompts = await asyncio.to_thread(lambda: work.prompts(vocab_size(config)))
        recordings = await _record(config, work, load, cuts, prompts)
        assignments = assign(config, work, load, cuts, prompts, recordings)
        with Working(f"Starting {load.num_clients} clients …"):
            fleet = await stack.enter_async_context(start_fleet(assignments))
        before = await counters(config)
        with progress("requests", work.num_prompts) as on_outcome:
            seconds, outcomes = await fleet.run(on_outcome)
        after = await counters(config)
    busy_s = after["engine_busy_seconds"] - before["engine_busy_seconds"]
    num_steps = after["engine_steps"] - before["engine_steps"]
    num_rows = after["engine_tokens"] - before["engine_tokens"]
    return {
        "model": config.model.model,
        "codec": config.codec.name,
        "num_clients": load.num_clients,
        "requests_per_client": load.requests_per_client,
        "num_processes": load.num_processes,
        "replay": load.num_recordings > 0,
        "input_len": work.input_len,
        "output_len": work.output_len,
        "seconds": seconds,
        **summarize(outcomes, seconds),
        "server_busy_ms_per_token": 1e3 * busy_s / max(1, _num_tokens(outcomes)),
        "server_busy_share": busy_s / seconds,
        "server_rows_per_step": num_rows / max(1, num_steps),
        "by_split": [
            {"split": cut, **summarize([one for one in outcomes if one.cut == cut], seconds)}
            for cut in dict.fromkeys(cuts)
        ],
    }


def assign(
    config: ClientConfig,
    work: Workload,
    load: Load,
    cuts: Sequence[int],
    prompts: Sequence[list[int]],
    recordings: Sequence[Recording],
) -> list[Assignment]:
    """Clients dealt out to processes, and cuts, prompts and recordings to clients, in turn."""
    by_cut = {cut: [i for i, one in enumerate(recordings) if one.cut == cut] for cut in cuts}
    clients = []
    for index in range(load.num_clients):
        cut = cuts[index % len(cuts)]
        first = index * load.requests_per_client
        numbers = range(first, first + load.requests_per_client)
        if recordings:
            replays = [by_cut[cut][number % len(by_cut[cut])] for number in numbers]
            clients.append(Client(index=index, cut=cut, replays=replays))
        else:
            clients.append(Client(index=index, cut=cut, prompts=[prompts[i] for i in numbers]))
    return [
        Assignment(
            config=config,
            sampling=work.sampling,
            clients=clients[process :: load.num_processes],
            recordings=list(recordings),
        )
        for process in range(load.num_processes)
    ]


def summarize(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """Rates count tokens of all requests, latencies only requests that did not fail."""
    failed = [one for one in outcomes if one.code is not None]
    num_packets = sum(one.num_packets for one in outcomes)
    return {
        "num_requests": len(outcomes),
        "num_errors": len(failed),
        "errors": dict(Counter(one.code for one in failed)),
        "first_error": failed[0].error if failed else None,
        "num_mismatched_tokens": sum(one.num_mismatches for one in outcomes),
        "num_tokens": _num_tokens(outcomes),
        "tokens_per_s": _num_tokens(outcomes) / seconds,
        "uplink_bytes_per_token": sum(one.bytes_up for one in outcomes) / max(1, num_packets),
        **latencies(one.timeline for one in outcomes if one.code is None),
    }


def tables(result: dict[str, Any]) -> list[Table]:
    what = "replayed packets" if result["replay"] else "first layers in the clients"
    title = (
        f"{result['num_clients']} clients × {result['requests_per_client']} requests × "
        f"({result['input_len']} + {result['output_len']}) tokens, {what}"
    )
    rows = [
        ("tokens/s, all clients", result["tokens_per_s"]),
        ("bytes up per hidden state", result["uplink_bytes_per_token"]),
        ("busy server, ms per token of the answers", result["server_busy_ms_per_token"]),
        ("busy server, share of the time", f"{result['server_busy_share']:.0%}"),
        ("rows per forward pass", result["server_rows_per_step"]),
        ("requests that failed", _count(result["num_errors"], result["num_requests"])),
    ]
    if result["replay"]:
        mismatched = _count(result["num_mismatched_tokens"], result["num_tokens"])
        rows.append(("tokens unlike the recorded ones", mismatched))
    if result["first_error"] is not None:
        rows.append(("the first failure", result["first_error"]))
    latency_rows = [
        [f"{name.upper()}, {label}", *(part[f"{name}_ms"] or {}).values()]
        for label, part in [
            ("all", result),
            *((f"cut {p['split']}", p) for p in result["by_split"]),
        ]
        for name in ("ttft", "tpot", "itl")
    ]
    columns = ["milliseconds", "mean", "p50", "p95", "p99"]
    return [make_table(title, ["", ""], rows), make_table("waiting", columns, latency_rows)]


def _count(part: int, whole: int) -> str:
    return f"{part} of {whole}"


def _num_tokens(outcomes: Sequence[Outcome]) -> int:
    return sum(len(one.timeline.tokens) for one in outcomes)


@asynccontextmanager
async def _own(config: ClientConfig, load: Load) -> AsyncIterator[ClientConfig]:
    """A server for the run, and the settings that reach it."""
    room = ["--max-requests", str(max(_DEFAULT_MAX_REQUESTS, load.num_clients))]
    with own_server(config, load.splits, room) as server:
        yield replace(config, server=server.url, api_key=server.api_key)


async def _record(
    config: ClientConfig,
    work: Workload,
    load: Load,
    cuts: Sequence[int],
    prompts: Sequence[list[int]],
) -> list[Recording]:
    """Recordings of the first prompts, each at every cut."""
    recordings: list[Recording] = []
    recorded = prompts[: load.num_recordings]
    with progress("recording, tokens", len(cuts) * len(recorded) * work.output_len) as on_token:
        for cut in cuts if recorded else ():
            recordings += await record(config, cut, recorded, work.sampling, on_token)
    return recordings
