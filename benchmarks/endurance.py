"""A thousand streams over HTTP and two hundred split sockets, at once, on one server.

Every stream of the OpenAI endpoint must come whole, in order, and with the text that its prompt
gets alone; every split socket sends recorded packets, and must get the recorded tokens, position
after position. Some HTTP clients leave in the middle. Before and after, what the server's processes
hold is counted: file descriptors, sockets, tasks on event loops, live requests, KV blocks. The last
line is JSON; the exit status is 1 if anything failed, was mixed up, or has been left behind.

    python benchmarks/endurance.py
    python benchmarks/endurance.py --http 100 --split 20 --model FOLDER
"""

import argparse
import asyncio
import json
import random
import resource
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import httpx
from soak import gauges, own_processes, wait_quiet

from sliceserve.cli.bench.fleet_messages import Outcome, Recording
from sliceserve.cli.bench.replay import record, replay
from sliceserve.cli.bench.timeline import Timeline
from sliceserve.cli.local_server import LocalServer, local_server
from sliceserve.cli.signals import end_on_sigterm
from sliceserve.client.connection import Connection, Dialer
from sliceserve.codec.registry import wire_id
from sliceserve.configs import (
    DEFAULT_MODEL,
    ClientConfig,
    CodecConfig,
    ModelConfig,
    SamplingParams,
)
from sliceserve.models.resolve import fingerprint, resolve_model
from sliceserve.models.spec import ModelSpec
from sliceserve.transport.frames import DataFrame, ProtocolError
from sliceserve.transport.link import Link, LinkClosed
from sliceserve.transport.messages import Bye, Control, Hello, Token
from sliceserve.transport.websocket import connect

NUM_PROMPTS = 10
# Of HTTP clients, how many go after their first pieces.
SHARE_OF_LEAVERS = 0.05
_SETTLE_TIMEOUT_S = 60.0
# Connections that are being opened at a time: a thousand at once would overflow the backlog.
_MAX_DIALS = 100


@dataclass
class Tally:
    """What has come of the clients. ``mixed_up`` are answers other than those their prompts get
    alone, or out of order; ``left`` clients that went away on purpose."""

    http: int = 0
    split: int = 0
    left: int = 0
    mixed_up: int = 0
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Census:
    """What the server's processes hold, all together."""

    fds: int
    sockets: int
    threads: int
    tasks: float
    rss_mb: float
    live: float
    kv_used: float
    split_sessions: float

    @property
    def held(self) -> dict[str, float]:
        """What must not have grown once everybody has gone."""
        counts = asdict(self)
        # Memory has its own test (soak.py), and pools of threads grow up to their size.
        return {name: counts[name] for name in counts if name not in ("rss_mb", "threads")}


async def take_census(url: str) -> Census:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        values = await gauges(http, url)
    processes = own_processes()
    return Census(
        fds=sum(process.num_fds() for process in processes),
        sockets=sum(len(process.net_connections()) for process in processes),
        threads=sum(process.num_threads() for process in processes),
        tasks=values["event_loop_tasks"],
        rss_mb=round(sum(process.memory_info().rss for process in processes) / 1e6, 1),
        live=values["num_requests_live"] + values["num_requests_queued"],
        kv_used=values["kv_cache_usage_perc"],
        split_sessions=values.get("split_sessions", 0.0),
    )


async def settled_census(url: str) -> Census:
    """Once nothing is live, and nothing changes any more."""
    await wait_quiet(url)
    last, now = None, await take_census(url)
    while last is None or last.held != now.held:
        await asyncio.sleep(0.5)
        last, now = now, await take_census(url)
    return now


async def census_afterwards(url: str, before: Census) -> Census:
    """Once all is as before, or when that takes too long: sockets close a little later."""
    await wait_quiet(url)
    deadline = time.monotonic() + _SETTLE_TIMEOUT_S
    while True:
        now = await take_census(url)
        if not left_behind(before, now) or time.monotonic() > deadline:
            return now
        await asyncio.sleep(0.5)


def left_behind(before: Census, after: Census) -> dict[str, float]:
    """What is held more than before, and how much more."""
    more = {name: after.held[name] - count for name, count in before.held.items()}
    return {name: difference for name, difference in more.items() if difference > 0}


@dataclass(frozen=True)
class Work:
    """What all clients ask: prompts, with the texts that they are answered with alone, and
    recordings of split answers."""

    model: str
    prompts: list[list[int]]
    texts: list[str]
    recordings: list[Recording]
    max_tokens: int

    def body(self, index: int) -> dict[str, object]:
        return {
            "model": self.model,
            "prompt": self.prompts[index % NUM_PROMPTS],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


async def read_stream(http: httpx.AsyncClient, work: Work, index: int) -> str:
    """The text of one answer. Raises RuntimeError for a stream that is not whole."""
    text, ended, num_tokens = "", False, None
    async with http.stream("POST", "/v1/completions", json=work.body(index)) as answer:
        if answer.status_code != 200:
            raise RuntimeError(f"HTTP {answer.status_code}: {(await answer.aread())[:300]!r}")
        async for data in _events(answer):
            if ended:
                raise RuntimeError(f"something came after the end: {data[:100]}")
            if data == "[DONE]":
                ended = True
                continue
            event = json.loads(data)
            if "error" in event:
                raise RuntimeError(f"the stream ended with {event['error']}")
            if event["usage"] is not None:
                num_tokens = event["usage"]["completion_tokens"]
            for choice in event["choices"]:
                text += choice["text"]
    if not ended or num_tokens != work.max_tokens:
        raise RuntimeError(f"the stream broke off after {num_tokens} tokens: {text!r}")
    return text


async def leave_early(http: httpx.AsyncClient, work: Work, index: int) -> None:
    async with http.stream("POST", "/v1/completions", json=work.body(index)) as answer:
        async for _ in _events(answer):
            return


async def _events(answer: httpx.Response) -> AsyncIterator[str]:
    async for line in answer.aiter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


async def http_client(
    http: httpx.AsyncClient, work: Work, index: int, leaves: bool, tally: Tally
) -> None:
    try:
        if leaves:
            await leave_early(http, work, index)
            tally.left += 1
            return
        text = await read_stream(http, work, index)
    except (RuntimeError, httpx.HTTPError) as error:
        tally.errors.append(f"http {index}: {error!r}")
        return
    tally.http += 1
    tally.mixed_up += text != work.texts[index % NUM_PROMPTS]


class _InOrder:
    """A connection whose tokens must come one position after the other."""

    def __init__(self, connection: Connection, recording: Recording) -> None:
        self.welcome = connection.welcome
        self.send = connection.send
        self.next_position = recording.num_prompt
        self._receive = connection.receive

    async def receive(self) -> tuple[Control | DataFrame, int]:
        message, num_bytes = await self._receive()
        if isinstance(message, Token):
            if message.position != self.next_position:
                raise RuntimeError(f"token {message.position} came for {self.next_position}")
            self.next_position += 1
        return message, num_bytes


async def split_client(connection: Connection, work: Work, index: int, tally: Tally) -> None:
    recording = work.recordings[index % NUM_PROMPTS]
    outcome = Outcome(client=index, cut=recording.cut, timeline=Timeline(time.perf_counter()))
    line = _InOrder(connection, recording)
    sampling = SamplingParams(max_tokens=len(recording.tokens), ignore_eos=True)
    try:
        await replay(line, 1, recording, sampling, outcome)  # type: ignore[arg-type]
        await connection.send(Bye())
    except (RuntimeError, LinkClosed, ProtocolError) as error:
        tally.errors.append(f"split {index}: {error!r}")
        return
    tally.split += 1
    is_whole = line.next_position == recording.num_prompt + len(recording.tokens)
    tally.mixed_up += outcome.num_mismatches > 0 or not is_whole


async def prepare(http: httpx.AsyncClient, config: ClientConfig, max_tokens: int) -> Work:
    """Ask for every answer alone."""
    spec = ModelSpec.load(resolve_model(config.model.model))
    rng = random.Random(0)
    prompts = [[rng.randrange(3, spec.vocab_size) for _ in range(12)] for _ in range(NUM_PROMPTS)]
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    recordings = await record(config, config.split or 1, prompts, sampling)
    model = (await http.get("/v1/models")).json()["data"][0]["id"]
    work = Work(model, prompts, [], recordings, max_tokens)
    for index in range(NUM_PROMPTS):
        work.texts.append(await read_stream(http, work, index))
    return work


async def crowd(
    server: LocalServer, config: ClientConfig, work: Work, options: argparse.Namespace
) -> Tally:
    """All clients at once: sockets are opened first, and then everybody asks."""
    tally = Tally()
    path = resolve_model(config.model.model)
    hello = Hello(
        fingerprint=fingerprint(path),
        cut=config.split,
        codec=wire_id(config.codec, ModelSpec.load(path).hidden_size),
    )
    dials = asyncio.Semaphore(_MAX_DIALS)

    async def dial() -> Link:
        return await connect(config.server, config.api_key, config.connect_timeout_s)

    async def open_line() -> Connection:
        async with dials:
            return await Dialer(dial, hello, config).connect()

    lines = await asyncio.gather(*(open_line() for _ in range(options.split)))
    rng = random.Random(1)
    async with api(server) as http:
        clients = [split_client(line, work, i, tally) for i, line in enumerate(lines)]
        for i in range(options.http):
            clients.append(http_client(http, work, i, rng.random() < SHARE_OF_LEAVERS, tally))
        await asyncio.wait_for(asyncio.gather(*clients), 60 * options.minutes)
    await asyncio.gather(*(line.close() for line in lines))
    return tally


def api(server: LocalServer) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=server.url,
        headers={"Authorization": f"Bearer {server.api_key}"},
        timeout=None,
        trust_env=False,
        limits=httpx.Limits(max_connections=None),
    )


async def endure(server: LocalServer, options: argparse.Namespace) -> dict[str, object]:
    config = ClientConfig(
        server=server.url,
        api_key=server.api_key,
        model=ModelConfig(model=options.model),
        split=server.cuts[0],
        codec=CodecConfig(name="float16"),
        connect_timeout_s=60.0,
    )
    async with api(server) as http:
        work = await prepare(http, config, options.max_tokens)
    # What a first crowd makes the server hold for good is no leak.
    few = argparse.Namespace(**{**vars(options), "http": 40, "split": 10})
    tally = await crowd(server, config, work, few)
    before = await settled_census(server.url)
    if tally.errors:
        raise SystemExit(f"the server fails before the crowd: {tally.errors[:3]}")
    began = time.perf_counter()
    tally = await crowd(server, config, work, options)
    seconds = time.perf_counter() - began
    after = await census_afterwards(server.url, before)
    return summarize(tally, before, after, seconds, options)


def summarize(
    tally: Tally, before: Census, after: Census, seconds: float, options: argparse.Namespace
) -> dict[str, object]:
    num_answered = tally.http + tally.split
    return {
        "http": tally.http,
        "split": tally.split,
        "left_early": tally.left,
        "errors": len(tally.errors),
        "first_errors": tally.errors[:5],
        "mixed_up": tally.mixed_up,
        "left_behind": left_behind(before, after),
        "before": asdict(before),
        "after": asdict(after),
        "seconds": round(seconds, 1),
        "tokens_per_s": round(num_answered * options.max_tokens / seconds, 1),
    }


def failed(result: dict[str, object]) -> bool:
    return bool(result["errors"] or result["mixed_up"] or result["left_behind"])


@contextmanager
def many_files() -> Iterator[None]:
    """As many file descriptors as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--http", type=int, default=1000, help="clients of the OpenAI endpoint")
    parser.add_argument("--split", type=int, default=200, help="split sockets")
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=20.0, help="the crowd's time, at most")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--cut", type=int, default=15)
    parser.add_argument("--serve", default="", help="more options of sliceserve serve")
    options = parser.parse_args()
    end_on_sigterm()
    places = str(options.http + options.split + 50)
    arguments = ["--model", options.model, "--cuts", str(options.cut), "--profiles", "off"]
    arguments += ["--max-requests", places, *options.serve.split()]
    with many_files(), local_server(arguments) as server:
        result = asyncio.run(endure(server, options))
    print(json.dumps(result))
    sys.exit(failed(result))


if __name__ == "__main__":
    main()
