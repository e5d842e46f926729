"""Requests that come when they come, however busy the server: an open loop of replaying clients."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sliceserve.cli.bench.fleet import start_fleet
from sliceserve.cli.bench.fleet_messages import Assignment, Client, Outcome, Recording
from sliceserve.cli.bench.goodput import Limits
from sliceserve.cli.bench.replay import part, record
from sliceserve.cli.bench.server_figures import counters
from sliceserve.cli.bench.timeline import latencies, summarize_ms
from sliceserve.cli.bench.trace import Arrival
from sliceserve.cli.console import progress
from sliceserve.configs import ClientConfig, SamplingParams
from sliceserve.models.resolve import resolve_model
from sliceserve.models.tokenizer import Tokenizer

_BEGINNING = "Once upon a time"


@dataclass(frozen=True, slots=True)
class Turn:
    """A fleet's run: seconds until its last request ended, those in which the server was busy, and
    what came of each request. ``Outcome.client`` is the number of the arrival."""

    seconds: float
    busy_s: float
    outcomes: list[Outcome]


async def record_tokens(config: ClientConfig, cut: int, num_tokens: int) -> Recording:
    """A greedy answer, with ``num_tokens`` of prompt and answer, that ``part`` makes requests of
    any length from."""
    path = resolve_model(config.model.model, config.model.trust_remote_code)
    prompt = Tokenizer.load(path).encode(_BEGINNING)
    sampling = SamplingParams(max_tokens=num_tokens - len(prompt), ignore_eos=True)
    with progress("recording, tokens", sampling.max_tokens) as on_token:
        (recording,) = await record(config, cut, [prompt], sampling, on_token)
    return recording


def assign_arrivals(
    config: ClientConfig, recording: Recording, arrivals: Sequence[Arrival]
) -> Assignment:
    """A client with a connection of its own for each arrival, numbered in order."""
    return Assignment(
        config=config,
        sampling=SamplingParams(ignore_eos=True),
        clients=[
            Client(index=i, cut=recording.cut, replays=[i], start_s=one.start_s)
            for i, one in enumerate(arrivals)
        ],
        recordings=[
            part(recording, max(one.num_prompt, recording.num_prompt), one.num_output)
            for one in arrivals
        ],
    )


async def run_turn(config: ClientConfig, assignments: Sequence[Assignment], label: str) -> Turn:
    """Let the clients of ``assignments`` go at the server of ``config``, all together."""
    total = sum(client.num_requests for one in assignments for client in one.clients)
    async with start_fleet(assignments) as fleet:
        before = await counters(config)
        with progress(f"{label}, requests", total) as on_outcome:
            seconds, outcomes = await fleet.run(on_outcome)
        after = await counters(config)
    busy_s = after["engine_busy_seconds"] - before["engine_busy_seconds"]
    return Turn(seconds, busy_s, outcomes)


def summarize_turns(
    turns: Sequence[Turn], arrivals: Sequence[Arrival], limits: Limits, short_tokens: int
) -> dict[str, Any]:
    """Figures over the requests of all turns. Prompts of at most ``short_tokens`` are short."""
    seconds = sum(turn.seconds for turn in turns)
    outcomes = [one for turn in turns for one in turn.outcomes]
    well = [one for one in outcomes if one.code is None]
    timelines = [one.timeline for one in well]
    ttft_s: dict[bool, list[float]] = {True: [], False: []}
    for one in well:
        is_short = arrivals[one.client].num_prompt <= short_tokens
        ttft_s[is_short] += [] if one.timeline.ttft_s is None else [one.timeline.ttft_s]
    return {
        "num_requests": len(outcomes),
        "errors": dict(Counter(one.code for one in outcomes if one.code is not None)),
        "num_mismatched_tokens": sum(one.num_mismatches for one in outcomes),
        "seconds": seconds,
        "server_busy_share": sum(turn.busy_s for turn in turns) / seconds,
        "tokens_per_s": sum(len(one.timeline.tokens) for one in outcomes) / seconds,
        "goodput_rps": limits.goodput(timelines, seconds),
        "good_share": limits.goodput(timelines, len(outcomes)),
        **latencies(timelines),
        "short_ttft_ms": summarize_ms(ttft_s[True]),
        "long_ttft_ms": summarize_ms(ttft_s[False]),
    }
