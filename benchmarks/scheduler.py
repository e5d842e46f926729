"""What a step costs the scheduler itself: thousands of clients around a runner that only models.

The scheduler and its block manager are the real ones. The runner takes the seconds that a table
gives for its rows, on a modelled clock, and clients think, compute and send on that clock too, over
links that follow a measured trace or a simple model. Real time is taken of ``schedule`` and
``update`` alone. The last line is JSON.

    python benchmarks/scheduler.py --live 10000 --rows 256 --json
    python benchmarks/scheduler.py --live 1000,10000 --policy all --network traces/network
"""

import argparse
import csv
import heapq
import itertools
import json
import random
import statistics
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from rich.table import Table

from sliceserve.cli.console import stderr
from sliceserve.configs import SamplingParams, SchedulerConfig
from sliceserve.configs.engine import PolicyName
from sliceserve.scheduler.blocks import BlockManager, Segment
from sliceserve.scheduler.errors import RequestRefused
from sliceserve.scheduler.plan import SampledToken, StepOutput, StepPlan
from sliceserve.scheduler.reports import Progress
from sliceserve.scheduler.request import Request
from sliceserve.scheduler.scheduler import Scheduler

# Rows of a step and its seconds; between them, on a line.
STEP_SECONDS = ((1, 0.008), (64, 0.010), (256, 0.018), (512, 0.030))
SEGMENTS = ((0, 8), (8, 15), (15, 22), (22, 30))
BLOCK_SIZE = 16
PACKET_BYTES = 90
# Seconds on a client for its head's layers, one way on the line, and for reading an answer.
HEAD_S, LATENCY_S, THINK_S = 0.03, 0.02, 4.0
# Clients beyond the requests that may live: more than think at any time, so the server stays full.
NUM_SPARE = 1000
NUM_TENANTS = 8
TRACE_STEP_S = 0.1
TIMES = ("step_ms_p50", "step_ms_p99", "cpu_ms_p50")


def step_seconds(num_rows: int) -> float:
    rows = [point[0] for point in STEP_SECONDS]
    i = min(max(1, bisect_left(rows, num_rows)), len(rows) - 1)
    (low, low_s), (high, high_s) = STEP_SECONDS[i - 1 : i + 1]
    return low_s + (high_s - low_s) * (num_rows - low) / (high - low)


class Links:
    """Uplinks that follow ``mbps``, one value for each 100 ms, each client from a place of its own;
    a value of 0 is an outage."""

    def __init__(self, mbps: Sequence[float]) -> None:
        self._bits = [value * 1e6 * TRACE_STEP_S for value in mbps]

    def seconds(self, client: int, now_s: float, num_bytes: int) -> float:
        """How long ``num_bytes`` are under way from now on."""
        left, step = 8.0 * num_bytes, int(now_s / TRACE_STEP_S) + 7919 * client
        for num_steps in itertools.count():
            room = self._bits[(step + num_steps) % len(self._bits)]
            if left <= room:
                return LATENCY_S + (num_steps + left / room) * TRACE_STEP_S
            left -= room
        raise AssertionError("unreachable")


def read_links(path: Path | None) -> Links:
    """Of a CSV with a column up_mbps, or all such in a folder; None: steady, 5 Mbit/s."""
    if path is None:
        return Links([5.0])
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    rows = [row for file in files for row in csv.DictReader(file.open(encoding="utf-8"))]
    mbps = [float(row["up_mbps"]) for row in rows]
    if not any(mbps):
        sys.exit(f"no up_mbps above 0 in {path}; give a trace, or leave --network out")
    return Links(mbps)


@dataclass(slots=True)
class Client:
    """A quarter of them are thin, the others enter at one of three cuts."""

    index: int
    entry_layer: int
    num_turns: int = 0

    @property
    def request_id(self) -> str:
        return f"{self.index}/{self.num_turns}"


class Simulation:
    """Clients, clock and modelled runner around one scheduler."""

    def __init__(
        self, num_live: int, num_rows: int, policy: PolicyName, links: Links, seed: int
    ) -> None:
        self._random = random.Random(seed)
        self._links = links
        self._now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._clients: dict[str, Client] = {}
        segments = [Segment(first, stop, 16 * num_live) for first, stop in SEGMENTS]
        config = SchedulerConfig(
            max_tokens_per_step=num_rows,
            max_requests_per_step=num_rows,
            max_requests=num_live,
            policy=policy,
            tenant_weights={f"tenant-{i}": 1.0 + i for i in range(NUM_TENANTS)},
        )
        self.scheduler = Scheduler(config, BlockManager(segments, BLOCK_SIZE), 2048, {0})
        for index in range(num_live + NUM_SPARE):
            client = Client(index, SEGMENTS[index % len(SEGMENTS)][0])
            self._after(self._random.uniform(0, THINK_S), partial(self._open, client))

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now_s + seconds, next(self._order), act))

    def _open(self, client: Client) -> None:
        client.num_turns += 1
        # Most prompts are short and some are long, as in chats; all are met in mid-answer.
        num_prompt = min(1024, int(self._random.lognormvariate(3.7, 0.9)) + 1)
        if client.num_turns == 1:
            num_prompt = 4
        request = Request(
            client.request_id,
            num_prompt=num_prompt,
            prompt=[client.num_turns << 16 | client.index] * num_prompt
            if client.entry_layer == 0
            else (),
            entry_layer=client.entry_layer,
            sampling=SamplingParams(max_tokens=int(self._random.expovariate(1 / 256)) + 1),
            tenant=f"tenant-{client.index % NUM_TENANTS}",
            priority=client.index % 3 - 1,
        )
        try:
            self.scheduler.add(request)
        except RequestRefused:
            self._think(client)
            return
        self._clients[client.request_id] = client
        if client.entry_layer > 0:
            self._send(client, 0, num_prompt)

    def _think(self, client: Client) -> None:
        self._after(self._random.expovariate(1 / THINK_S), lambda: self._open(client))

    def _send(self, client: Client, start: int, stop: int) -> None:
        """The head computes positions [start, stop), and their packets cross the line."""
        request_id = client.request_id
        packets = [request_id.encode().ljust(PACKET_BYTES)] * (stop - start)
        num_bytes = PACKET_BYTES * len(packets)
        seconds = HEAD_S + self._links.seconds(client.index, self._now_s, num_bytes)
        self._after(seconds, lambda: self._arrive(request_id, start, packets))

    def _arrive(self, request_id: str, start: int, packets: list[bytes]) -> None:
        self.scheduler.append(request_id, start, packets)

    def _receive(self, progress: Progress) -> None:
        request_id = progress.request.request_id
        client = self._clients[request_id]
        if progress.finish_reason is not None:
            del self._clients[request_id]
            self._think(client)
        elif progress.token is not None and client.entry_layer > 0:
            self._send(client, progress.start, progress.start + 1)

    def _run(self, plan: StepPlan) -> StepOutput:
        seconds = step_seconds(plan.num_tokens)
        self._now_s += seconds
        token = SampledToken(1)
        return StepOutput(
            {r.request_id: token for r in plan.requests if r.sampling is not None},
            seconds={r.request_id: seconds / len(plan.requests) for r in plan.requests},
        )

    def step(self) -> tuple[float, float, StepPlan]:
        """The next step that has something to do: the scheduler's seconds for it, real ones and
        those of the processor, and the plan."""
        while True:
            while self._events and self._events[0][0] <= self._now_s:
                heapq.heappop(self._events)[2]()
            started = _clocks()
            plan = self.scheduler.schedule()
            scheduled = _clocks()
            if plan is not None:
                break
            self._now_s = self._events[0][0]
        output = self._run(plan)
        before = _clocks()
        progress = self.scheduler.update(plan, output)
        after = _clocks()
        for report in progress:
            self._receive(report)
        real_s, cpu_s = (
            scheduled[i] - started[i] + after[i] - before[i] for i in range(len(started))
        )
        return real_s, cpu_s, plan


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.thread_time()


def measure(
    num_live: int, num_rows: int, policy: PolicyName, num_steps: int, links: Links, seed: int
) -> dict[str, Any]:
    simulation = Simulation(num_live, num_rows, policy, links, seed)
    # Until all have been met, and those who think come and go.
    for _ in range(num_live // 16 + 500):
        simulation.step()
    real, cpu, rows, requests, live = [], [], [], [], []
    for _ in range(num_steps):
        real_s, cpu_s, plan = simulation.step()
        real.append(1000 * real_s)
        cpu.append(1000 * cpu_s)
        rows.append(plan.num_tokens)
        requests.append(len(plan.requests))
        live.append(simulation.scheduler.stats.num_live)
    percentiles = statistics.quantiles(real, n=100, method="inclusive")
    return {
        "policy": policy,
        "live_requests": round(statistics.median(live)),
        "rows": num_rows,
        "rows_p50": round(statistics.median(rows)),
        "requests_p50": round(statistics.median(requests)),
        "step_ms_p50": round(percentiles[49], 3),
        "step_ms_p99": round(percentiles[98], 3),
        "cpu_ms_p50": round(statistics.median(cpu), 3),
        "steps": num_steps,
    }


def show(results: Sequence[dict[str, Any]]) -> None:
    """A table, in which "grows" is the median against that of the fewest live requests."""
    table = Table("policy", "live", "rows", "requests", "p50 ms", "p99 ms", "CPU ms", "grows")
    base: dict[str, float] = {}
    for result in results:
        p50 = result["step_ms_p50"]
        growth = p50 / base.setdefault(result["policy"], p50)
        columns = ("policy", "live_requests", "rows_p50", "requests_p50", *TIMES)
        table.add_row(*(str(result[column]) for column in columns), f"{growth:.2f} ×")
    stderr.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--live", default="1000,10000", help="live requests, between commas")
    parser.add_argument("--rows", type=int, default=256, help="rows of a step, at most")
    parser.add_argument("--policy", default="fcfs", choices=[*get_args(PolicyName), "all"])
    parser.add_argument("--steps", type=int, default=1000, help="steps that are measured")
    parser.add_argument("--network", type=Path, help="a trace of uplinks, or a folder of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="no table, the line alone")
    args = parser.parse_args()
    policies = get_args(PolicyName) if args.policy == "all" else (args.policy,)
    links = read_links(args.network)
    results = [
        measure(int(live), args.rows, policy, args.steps, links, args.seed)
        for policy in policies
        for live in args.live.split(",")
    ]
    if not args.json:
        show(results)
    print(json.dumps(results[0] if len(results) == 1 else {"results": results}))


if __name__ == "__main__":
    main()
