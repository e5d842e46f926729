"""Some of the clients of `bench serve`: ``python -m sliceserve.cli.bench.client_worker``.

Standard input brings an ``Assignment``, and an empty line when all processes are ready and the
clients shall begin. Standard output answers ``Ready``, then an ``Outcome`` as each request ends and
``Ended`` when all have; or ``Failed``. The process ends when its work does, or its standard input.
"""

import asyncio
import os
import signal
import sys
import threading
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import Protocol

import msgspec

from sliceserve.api.server import run
from sliceserve.cli.bench.backends import NO_PREFIXES
from sliceserve.cli.bench.fleet_messages import Assignment, Client, Ended, Failed, Outcome, Ready
from sliceserve.cli.bench.replay import replay
from sliceserve.cli.bench.shared_head import SharedHead, StartedOnce
from sliceserve.cli.bench.timeline import Timeline
from sliceserve.cli.bench.workload import time_request
from sliceserve.client.build import dial_server, fetch_from
from sliceserve.client.connection import Connection, Dialer
from sliceserve.client.errors import SplitError
from sliceserve.client.session import SplitSession
from sliceserve.client.stats import RequestStats
from sliceserve.codec.registry import wire_id
from sliceserve.configs import ClientConfig, EngineConfig, LayerConfig
from sliceserve.engine.client import EngineDead
from sliceserve.engine.generation import GenerationError
from sliceserve.engine.in_process import InProcessEngine
from sliceserve.models.errors import ModelError
from sliceserve.models.resolve import fingerprint, resolve_model
from sliceserve.models.spec import ModelSpec
from sliceserve.transport.frames import ProtocolError
from sliceserve.transport.link import LinkClosed
from sliceserve.transport.messages import PROTOCOL_VERSION, Bye, Hello, Welcome

# Handshakes at once: a server's queue of new connections is not endless.
_NUM_DIALS = 32


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assignment = msgspec.json.decode(sys.stdin.buffer.readline(), type=Assignment)
    run(_work(assignment))


async def _work(assignment: Assignment) -> None:
    async with AsyncExitStack() as stack:
        try:
            requesters = await _connect_all(assignment, stack)
        except (SplitError, ModelError, EngineDead, ValueError) as error:
            _say(Failed(str(error)))
            return
        _say(Ready())
        await asyncio.to_thread(sys.stdin.buffer.readline)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        began = time.perf_counter()
        clients = zip(assignment.clients, requesters, strict=True)
        await asyncio.gather(*(_drive(client, requester, began) for client, requester in clients))
        _say(Ended())


class _Requester(Protocol):
    async def request(self, number: int, outcome: Outcome) -> None:
        """The client's request of this number. Raises GenerationError, LinkClosed and
        ProtocolError."""
        ...


async def _drive(client: Client, requester: _Requester, began: float) -> None:
    await asyncio.sleep(began + client.start_s - time.perf_counter())
    # A first request counts from the moment that it was due, late as this process may be.
    due = began + client.start_s
    for number in range(client.num_requests):
        if client.stop_s is not None and due - began > client.stop_s:
            return
        timeline = Timeline(due)
        outcome = Outcome(client=client.index, cut=client.cut, timeline=timeline)
        try:
            await requester.request(number, outcome)
        except (GenerationError, ProtocolError) as error:
            outcome.code, outcome.error = error.code, str(error)
        except LinkClosed as error:
            outcome.code, outcome.error = "connection_lost", str(error)
        _say(outcome)
        due = time.perf_counter()


class _HeadRequester:
    """Runs the first layers."""

    def __init__(self, session: SplitSession, assignment: Assignment, client: Client) -> None:
        self._session = session
        self._sampling = assignment.sampling
        self._prompts = client.prompts

    async def request(self, number: int, outcome: Outcome) -> None:
        stats = RequestStats()
        tokens = self._session.generate(self._prompts[number], self._sampling, stats=stats)
        try:
            await time_request(tokens, lambda: None, outcome.timeline)
        finally:
            outcome.num_packets, outcome.bytes_up = stats.num_packets, stats.bytes_up


class _ReplayRequester:
    """Sends what was recorded."""

    def __init__(self, connection: Connection, assignment: Assignment, client: Client) -> None:
        self._connection = connection
        self._sampling = assignment.sampling
        self._recordings = [assignment.recordings[i] for i in client.replays]

    async def request(self, number: int, outcome: Outcome) -> None:
        recording = self._recordings[number]
        sampling = msgspec.structs.replace(self._sampling, max_tokens=len(recording.tokens))
        await replay(self._connection, number + 1, recording, sampling, outcome)

    async def close(self) -> None:
        try:
            await self._connection.send(Bye())
        except LinkClosed:
            return
        await self._connection.close()


async def _connect_all(assignment: Assignment, stack: AsyncExitStack) -> list[_Requester]:
    """Connections and heads, in the order of the assignment's clients; ``stack`` ends them."""
    config = assignment.config
    path = resolve_model(config.model.model, config.model.trust_remote_code)
    hello = Hello(
        protocol=PROTOCOL_VERSION,
        fingerprint=fingerprint(path),
        codec=wire_id(config.codec, ModelSpec.load(path).hidden_size),
        hide_tokens=config.codec.calibrated.hide_tokens,
    )
    heads = _Heads(config, stack)
    dialing = asyncio.Semaphore(_NUM_DIALS)

    async def connect_one(client: Client) -> _Requester:
        greeting = msgspec.structs.replace(hello, cut=client.cut)
        async with dialing:
            if assignment.recordings:
                return await _replaying(assignment, client, greeting, stack)
            return await _generating(assignment, client, greeting, heads, stack)

    return await asyncio.gather(*map(connect_one, assignment.clients))


class _Heads:
    """The first layers up to each cut, loaded when the first client asks for them."""

    def __init__(self, config: ClientConfig, stack: AsyncExitStack) -> None:
        self._config = config
        self._stack = stack
        self._heads: dict[int, StartedOnce] = {}

    def share(self, welcome: Welcome, client: Client) -> SharedHead:
        cut = welcome.cut
        if cut not in self._heads:
            settings = EngineConfig(
                model=self._config.model, layers=LayerConfig(stop=cut), cache=NO_PREFIXES
            )
            engine = InProcessEngine(settings, self._config.codec, welcome.profile)
            self._stack.push_async_callback(engine.stop)
            self._heads[cut] = StartedOnce(engine)
        return SharedHead(self._heads[cut], str(client.index))


async def _generating(
    assignment: Assignment, client: Client, hello: Hello, heads: _Heads, stack: AsyncExitStack
) -> _Requester:
    config = assignment.config

    session = SplitSession(
        partial(dial_server, config),
        lambda welcome: heads.share(welcome, client),
        hello,
        config,
        fetch_from(config),
    )
    await session.start()
    stack.push_async_callback(session.close)
    return _HeadRequester(session, assignment, client)


async def _replaying(
    assignment: Assignment, client: Client, hello: Hello, stack: AsyncExitStack
) -> _Requester:
    config = assignment.config

    dialer = Dialer(partial(dial_server, config), hello, config)
    requester = _ReplayRequester(await dialer.connect(), assignment, client)
    stack.push_async_callback(requester.close)
    return requester


def _say(report: Ready | Failed | Outcome | Ended) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    sys.stdout.buffer.flush()


def _end_with_parent() -> None:
    """Standard input closes when the command dies."""
    # Not through sys.stdin, whose lock a waiting thread would hold while the interpreter ends.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
