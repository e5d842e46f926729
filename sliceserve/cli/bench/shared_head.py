"""One head for the clients of a process."""

import asyncio
from typing import TypeVar

import msgspec

from sliceserve.engine.client import EngineClient, RequestStream
from sliceserve.engine.messages import Command, EngineInfo, EngineStats, Open, RequestCommand

_Command = TypeVar("_Command", bound=RequestCommand)


class StartedOnce:
    """An engine that many may start: the first does, the others wait for it."""

    def __init__(self, engine: EngineClient) -> None:
        self.engine = engine
        self._starting: asyncio.Task[EngineInfo] | None = None

    async def start(self) -> EngineInfo:
        if self._starting is None:
            self._starting = asyncio.create_task(self.engine.start())
        return await asyncio.shield(self._starting)


class SharedHead:
    """An engine as seen by one of the sessions that share it; see ``EngineClient``.

    ``name`` tells the sessions' requests apart. Stopping is the owner's affair.
    """

    def __init__(self, shared: StartedOnce, name: str) -> None:
        self._shared = shared
        self._engine = shared.engine
        self._name = name

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    async def start(self) -> EngineInfo:
        return await self._shared.start()

    async def stop(self) -> None:
        pass

    async def stats(self) -> EngineStats:
        return await self._engine.stats()

    def open(self, request: Open) -> RequestStream:
        return self._engine.open(self._named(request))

    def send(self, command: Command) -> None:
        assert isinstance(command, RequestCommand)
        self._engine.send(self._named(command))

    def _named(self, command: _Command) -> _Command:
        return msgspec.structs.replace(command, request_id=f"{self._name}:{command.request_id}")
