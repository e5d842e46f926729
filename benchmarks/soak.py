"""Whether a server's memory stays flat while split clients come, stall, vanish and return.

Clients send noise for packets, so that the server alone works. What each request does is drawn: it
runs to its end, stalls in mid-answer, ends, loses its line and returns soon or after the server has
forgotten it, or vanishes with its line cut or left hanging. KV blocks, places and room for packets
are few, so that requests are preempted, queue, and lack credit. The server's processes are sampled
every few seconds. The last line is JSON: the slope of their resident memory after the warm-up,
errors, and whether at the end every block is free and no packet is kept.

    python benchmarks/soak.py --minutes 20
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx
import psutil
import torch
import websockets
from prometheus_client.parser import text_string_to_metric_families
from websockets.typing import Subprotocol

from sliceserve.cli.local_server import LocalServer, local_server
from sliceserve.cli.signals import end_on_sigterm
from sliceserve.configs import DEFAULT_MODEL, SamplingParams
from sliceserve.models.resolve import resolve_model
from sliceserve.models.spec import ModelSpec
from sliceserve.transport.frames import DataFrame, decode, encode
from sliceserve.transport.messages import (
    SUBPROTOCOL,
    Bye,
    Cancel,
    Credit,
    Error,
    Hello,
    Open,
    Opened,
    Token,
    Want,
    Welcome,
)

# How often a request does what.
FATES = {
    "finish": 8,
    "stall": 3,
    "cancel": 2,
    "return": 3,
    "return late": 1,
    "vanish": 2,
    "hang": 1,
}
# A server forgets requests whose clients stay away longer.
_DETACHED_S = 5.0
# It finds out that a line hangs by two pings.
_HANG_S = 45.0
_SAMPLE_EVERY_S = 2.0
_QUIET_TIMEOUT_S = 90.0


@dataclass
class Tally:
    """What has happened; ``errors`` are answers that nothing accounts for."""

    fates: Counter[str] = field(default_factory=Counter)
    num_tokens: int = 0
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """Where clients go, and with what."""

    server: LocalServer
    fingerprint: str
    noise: list[bytes]


@dataclass
class Call:
    """One request, across its connections."""

    num_prompt: int
    max_tokens: int
    offset: int
    outputs: list[int] = field(default_factory=list)
    resume_token: str | None = None
    ended: bool = False

    @property
    def num_known(self) -> int:
        return self.num_prompt + len(self.outputs)


class Line:
    """One connection with one request on it."""

    def __init__(self, socket: websockets.ClientConnection, place: Place, call: Call) -> None:
        self.socket = socket
        self._place = place
        self._call = call
        self._next = self._credit = 0

    async def open(self) -> None:
        call = self._call
        hello = Hello(
            fingerprint=self._place.fingerprint, codec="float32/1", resume_token=call.resume_token
        )
        await self.socket.send(encode(hello))
        welcome = decode(await self.socket.recv(decode=False))
        if not isinstance(welcome, Welcome):
            raise RuntimeError(f"Hello was answered with {welcome}")
        call.resume_token = welcome.resume_token
        sampling = SamplingParams(max_tokens=call.max_tokens, ignore_eos=True)
        opening = Open(
            request_id=1, num_prompt=call.num_prompt, sampling=sampling, outputs=call.outputs
        )
        await self.socket.send(encode(opening))

    async def talk(self, num_tokens: int) -> None:
        """Send what may be sent until so many new tokens are here, or the request has ended."""
        call, before = self._call, len(self._call.outputs)
        while not call.ended and len(call.outputs) - before < num_tokens:
            await self._send()
            match message := decode(await self.socket.recv(decode=False)):
                case Opened():
                    self._next, self._credit = message.next_position, message.credit
                case Credit():
                    self._credit = message.credit
                case Want():
                    self._next = message.next_position
                case Token():
                    if message.position == call.num_known:
                        call.outputs.append(message.token_id)
                    call.ended = message.finish_reason is not None
                case _:
                    call.ended = True
                    if not isinstance(message, Error) or message.code != "overloaded":
                        raise RuntimeError(f"the server said {message}")

    async def _send(self) -> None:
        stop = min(self._credit, self._call.num_known)
        while self._next < stop:
            end = min(stop, self._next + 64)
            noise = self._place.noise
            packets = tuple(
                noise[(self._call.offset + p) % len(noise)] for p in range(self._next, end)
            )
            await self.socket.send(encode(DataFrame(1, self._next, packets)))
            self._next = end


@contextlib.asynccontextmanager
async def line_to(place: Place, call: Call) -> AsyncIterator[Line]:
    url = place.server.url.replace("http", "ws", 1) + "/v1/split"
    headers = {"Authorization": f"Bearer {place.server.api_key}"}
    socket = await websockets.connect(
        url,
        subprotocols=[Subprotocol(SUBPROTOCOL)],
        compression=None,
        additional_headers=headers,
        proxy=None,
    )
    try:
        line = Line(socket, place, call)
        await line.open()
        yield line
    finally:
        socket.transport.abort()


async def one_request(place: Place, fate: str, rng: random.Random) -> Call:
    call = Call(rng.randrange(1, 120), rng.randrange(2, 24), rng.randrange(1 << 30))
    half = rng.randrange(0, call.max_tokens)
    async with line_to(place, call) as line:
        await line.talk(half)
        match fate:
            case "stall":
                await asyncio.sleep(rng.uniform(0.5, 2 * _DETACHED_S))
            case "hang":
                # Nobody answers the server's pings any more.
                line.socket.transport.pause_reading()
                await asyncio.sleep(_HANG_S)
            case "cancel":
                await line.socket.send(encode(Cancel(request_id=1)))
        if fate in ("finish", "stall"):
            await line.talk(call.max_tokens)
        if fate in ("finish", "stall", "cancel"):
            await line.socket.send(encode(Bye()))
            with contextlib.suppress(websockets.ConnectionClosed):
                while True:
                    await line.socket.recv()
    if fate.startswith("return") and not call.ended:
        late = fate == "return late"
        await asyncio.sleep(_DETACHED_S * rng.uniform(1.2, 2) if late else rng.uniform(0, 1))
        async with line_to(place, call) as line:
            await line.talk(call.max_tokens)
    return call


async def client(place: Place, seed: int, deadline: float, tally: Tally) -> None:
    rng = random.Random(seed)
    while time.monotonic() < deadline:
        (fate,) = rng.choices(list(FATES), list(FATES.values()))
        try:
            call = await one_request(place, fate, rng)
            tally.fates[fate] += 1
            tally.num_tokens += len(call.outputs)
        except (RuntimeError, OSError, websockets.WebSocketException) as error:
            tally.errors.append(f"{fate}: {error!r}")
            await asyncio.sleep(1.0)
        await asyncio.sleep(rng.expovariate(1.0))


async def gauges(http: httpx.AsyncClient, url: str) -> dict[str, float]:
    """The server's gauges by name; the highest of those with labels."""
    text = (await http.get(f"{url}/metrics")).raise_for_status().text
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix("sliceserve:")
            values[name] = max(sample.value, values.get(name, sample.value))
    return values


def own_processes() -> list[psutil.Process]:
    """The server's processes: all that this one has started."""
    return psutil.Process().children(recursive=True)


async def sample(url: str, began: float, deadline: float) -> list[dict[str, float]]:
    samples = []
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        while (now := time.monotonic()) < deadline:
            values = await gauges(http, url)
            processes = own_processes()
            row = {
                "seconds": now - began,
                "rss_mb": sum(p.memory_info().rss for p in processes) / 1e6,
                "fds": sum(p.num_fds() for p in processes),
                "live": values["num_requests_live"],
                "queued": values["num_requests_queued"],
                "packet_bytes": values["held_packet_bytes"],
                "kv_used": values["kv_cache_usage_perc"],
                "preempted": values["num_preemptions_total"],
            }
            samples.append(row)
            print(" ".join(f"{name} {value:.4g}" for name, value in row.items()), file=sys.stderr)
            await asyncio.sleep(_SAMPLE_EVERY_S)
    return samples


async def wait_quiet(url: str) -> dict[str, float]:
    """The gauges once nothing is live, or when that takes too long."""
    deadline = time.monotonic() + _QUIET_TIMEOUT_S
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        while True:
            values = await gauges(http, url)
            num_left = values["num_requests_live"] + values["num_requests_queued"]
            if num_left == 0 or time.monotonic() > deadline:
                return values
            await asyncio.sleep(1.0)


async def soak(server: LocalServer, options: argparse.Namespace) -> dict[str, object]:
    headers = {"Authorization": f"Bearer {server.api_key}"}
    async with httpx.AsyncClient(headers=headers, trust_env=False, timeout=60) as http:
        info = (await http.get(f"{server.url}/v1/split/info")).raise_for_status().json()
    size = ModelSpec.load(resolve_model(options.model)).hidden_size
    rows = torch.randn(512, size, generator=torch.Generator().manual_seed(0))
    noise = [row.numpy().tobytes() for row in rows]
    place = Place(server, info["fingerprint"], noise)
    tally = Tally()
    began = time.monotonic()
    deadline = began + 60 * options.minutes
    clients = [client(place, seed, deadline, tally) for seed in range(options.clients)]
    sampling = asyncio.create_task(sample(server.url, began, deadline))
    await asyncio.gather(sampling, *clients)
    quiet = await wait_quiet(server.url)
    return summarize(sampling.result(), tally, quiet, options)


def summarize(
    samples: list[dict[str, float]],
    tally: Tally,
    quiet: dict[str, float],
    options: argparse.Namespace,
) -> dict[str, object]:
    warm = [s for s in samples if s["seconds"] >= 60 * options.minutes * options.warm_up]
    hours = [s["seconds"] / 3600 for s in warm]
    slopes = {
        name: statistics.linear_regression(hours, [s[name] for s in warm]).slope
        for name in ("rss_mb", "fds")
    }
    mean = statistics.fmean(s["rss_mb"] for s in warm)
    return {
        "minutes": options.minutes,
        "clients": options.clients,
        "requests": dict(tally.fates),
        "tokens": tally.num_tokens,
        "samples": len(warm),
        "rss_mb_mean": round(mean, 1),
        "rss_mb_first": round(warm[0]["rss_mb"], 1),
        "rss_mb_last": round(warm[-1]["rss_mb"], 1),
        "rss_mb_per_hour": round(slopes["rss_mb"], 2),
        "rss_percent_per_hour": round(100 * slopes["rss_mb"] / mean, 2),
        "fds_per_hour": round(slopes["fds"], 1),
        "most_live": max(s["live"] for s in samples),
        "most_queued": max(s["queued"] for s in samples),
        "most_packet_bytes": max(s["packet_bytes"] for s in samples),
        "preempted": samples[-1]["preempted"],
        "errors": len(tally.errors),
        "first_errors": tally.errors[:5],
        "all_free": quiet["kv_cache_usage_perc"] == 0
        and quiet["held_packet_bytes"] == 0
        and quiet["num_requests_live"] + quiet["num_requests_queued"] == 0,
    }


def main() -> None:
    end_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--warm-up", type=float, default=0.25, help="share not counted")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--first-layer", type=int, default=22)
    parser.add_argument("--serve", default="", help="more options of sliceserve serve")
    options = parser.parse_args()
    arguments = ["--model", options.model, "--first-layer", str(options.first_layer)]
    arguments += ["--kv-cache-tokens", "768", "--max-requests", "12", "--profiles", "off"]
    arguments += ["--max-packet-bytes", "2000000", *options.serve.split()]
    os.environ["SLICESERVE_ENGINE__SCHEDULER__DETACHED_TIMEOUT_S"] = str(_DETACHED_S)
    with local_server(arguments) as server:
        result = asyncio.run(soak(server, options))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
