"""A TCP proxy on loopback that makes a line worse, and cuts it on demand."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any

from sliceserve.transport.shaping import Bottleneck, Clock, Lane, LinkShape, MonotonicClock

CHUNK_BYTES = 16 * 1024


class ShapingProxy:
    """Forwards connections to ``target_host:target_port`` over one shaped line, which all of them
    share as the programs of one device share its uplink.

    ``async with ShapingProxy(host, port, shape) as proxy:`` listens on 127.0.0.1 at
    ``proxy.port``. ``bytes_up`` and ``bytes_down`` count TCP payload that has been forwarded.
    """

    def __init__(
        self,
        target_host: str,
        target_port: int,
        shape: LinkShape | None = None,
        clock: Clock | None = None,
    ) -> None:
        shape = shape or LinkShape()
        self.bytes_up = 0
        self.bytes_down = 0
        self._target = (target_host, target_port)
        self._clock = clock or MonotonicClock()
        self._origin_s = self._clock.now()
        self._up = Bottleneck(shape, "up")
        self._down = Bottleneck(shape, "down")
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        if self._server is None:
            raise RuntimeError("the proxy is not running; use `async with` or await start()")
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def num_connections(self) -> int:
        return len(self._tasks)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def stop(self) -> None:
        """Refuse new connections and cut the old ones. May be called twice."""
        if self._server is not None:
            self._server.close()
            await self.cut()
            await self._server.wait_closed()
            self._server = None

    async def __aenter__(self) -> "ShapingProxy":
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def cut(self) -> None:
        """Break every connection at both ends, as a line that is lost. New ones are accepted."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def stall(self) -> None:
        """Let nothing pass until ``resume``; connections stay open."""
        self._flowing.clear()

    def resume(self) -> None:
        self._flowing.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            # Whoever loses one end learns of it by losing the other.
            with suppress(OSError):
                target_reader, target_writer = await asyncio.open_connection(*self._target)
                ends.append(target_writer)
                await _until_both_end(
                    self._forward(reader, target_writer, self._up),
                    self._forward(target_reader, writer, self._down),
                )
                for end in ends:
                    end.close()
                    await end.wait_closed()
        finally:
            for end in ends:
                end.transport.abort()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, bottleneck: Bottleneck
    ) -> None:
        async def deliver(data: bytes) -> None:
            writer.write(data)
            await writer.drain()
            if bottleneck is self._up:
                self.bytes_up += len(data)
            else:
                self.bytes_down += len(data)

        lane = Lane(bottleneck, deliver, self._clock, self._origin_s, self._flowing)
        try:
            while data := await reader.read(CHUNK_BYTES):
                await lane.push(data, len(data))
            await lane.finish()
            writer.write_eof()
        finally:
            await lane.stop()


async def _until_both_end(*directions: Coroutine[Any, Any, None]) -> None:
    """As gather, but a failure of one ends the other."""
    tasks = [asyncio.create_task(direction) for direction in directions]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
