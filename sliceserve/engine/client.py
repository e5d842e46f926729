"""The door to an engine, wherever it runs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NoReturn, Protocol

from sliceserve.engine.messages import Command, EngineInfo, EngineStats, Open, RequestOutput

_WATCH_INTERVAL_S = 1.0


class EngineDead(RuntimeError):
    """The engine is gone; its last words are the message."""


class RequestStream(Protocol):
    """The outputs of one request, in order: an async iterator that ends after ``finish_reason``.

    Several outputs that wait are not merged. Leaving the iteration early cancels nothing.
    """

    def __aiter__(self) -> AsyncIterator[RequestOutput]: ...

    async def __anext__(self) -> RequestOutput: ...


class EngineClient(Protocol):
    """An engine seen from an event loop. ``InProcessEngine`` runs it in a thread of this process,
    ``EngineProcess`` in a process of its own, behind ZeroMQ; ``RemoteEngine`` joins one that runs.

    All methods are called from one event loop. ``open``'s stream first yields the output with
    ``opened`` set, or one with ``finish_reason`` "error" (unknown codec, no room, prompt too long,
    …). Opening a live ``request_id`` again, from whatever process, moves its outputs to the new
    stream; the old one ends.
    Every method raises EngineDead once the engine has died, and so do waiting streams.
    """

    @property
    def info(self) -> EngineInfo: ...

    async def start(self) -> EngineInfo:
        """Load the model and begin stepping. Raises EngineDead with the reason if it cannot."""
        ...

    def open(self, request: Open) -> RequestStream: ...

    def send(self, command: Command) -> None:
        """Pass on an AppendTokens, AppendPackets, Cancel, Detach or PeerGone; never waits."""
        ...

    async def stats(self) -> EngineStats: ...

    async def stop(self) -> None:
        """End the engine, live requests and all; a ``RemoteEngine`` only leaves it. May be called
        twice."""
        ...


async def watch(stats: Callable[[], Awaitable[EngineStats]]) -> NoReturn:
    """Return never. Raises EngineDead when the engine that ``stats`` asks has died."""
    while True:
        await stats()
        await asyncio.sleep(_WATCH_INTERVAL_S)
