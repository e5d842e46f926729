"""One head for the clients of a process."""

from typing import TypeVar

import msgspec

from sliceserve.engine.client import EngineClient, RequestStream
from sliceserve.engine.messages import Command, EngineInfo, EngineStats, Open, RequestCommand

_Command = TypeVar("_Command", bound=RequestCommand)


class SharedHead:
    """An engine as seen by one of the sessions that share it; see ``EngineClient``.

    ``name`` tells the sessions' requests apart. Starting and stopping is the owner's affair.
    """

    def __init__(self, engine: EngineClient, name: str) -> None:
        self._engine = engine
        self._name = name

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    async def start(self) -> EngineInfo:
        return self._engine.info

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
