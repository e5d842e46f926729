"""An engine in a process of its own, behind ZeroMQ, so that sockets never hold up a forward pass.

The process is ``python -m sliceserve.engine.worker``. It reads its settings as one JSON line from
standard input, and ends when that pipe closes: an engine never outlives whoever started it. Lines
on its standard output say what takes long while it starts.
"""

import asyncio
import contextlib
import shutil
import sys
import tempfile
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from sliceserve.configs import EngineConfig
from sliceserve.engine.messages import Answer, Command, EngineInfo
from sliceserve.engine.profiles import Tell
from sliceserve.engine.streams import EngineStreams

_STOP_TIMEOUT_S = 5.0


class RemoteEngine(EngineStreams):
    """An engine that listens at a ZeroMQ address. Several processes may each have one, under names
    of their own: ``peer`` is what `PeerGone` calls this one when it has died."""

    def __init__(self, address: str, peer: bytes | None = None) -> None:
        super().__init__()
        self.address = address
        self._peer = peer
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(list[Answer])
        self._context: zmq.asyncio.Context | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> EngineInfo:
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        # What may wait is bounded by credit and by the number of requests, not by the socket.
        self._socket.set_hwm(0)
        self._socket.linger = 0
        if self._peer is not None:
            self._socket.routing_id = self._peer
        self._socket.connect(self.address)
        self._reader = asyncio.create_task(self._read())
        return await self._ask_info()

    def fail(self, reason: str) -> None:
        """The engine has died, as whoever started it has seen: all who wait learn why."""
        self._die(reason)

    async def stop(self) -> None:
        self._die("the engine was stopped")
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
            self._reader = None
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None

    def _post(self, command: Command) -> None:
        # Without a high-water mark the send is done when the call returns.
        self._socket.send(self._encoder.encode(command))

    async def _read(self) -> None:
        while True:
            self._dispatch(self._decoder.decode(await self._socket.recv()))


class EngineProcess(RemoteEngine):
    """Starts the engine that it talks to, and ends it. ``tell`` hears sentences about what takes
    long."""

    def __init__(self, config: EngineConfig, tell: Tell = lambda sentence: None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="sliceserve-"))
        super().__init__(f"ipc://{self._folder}/engine")
        self._config = config
        self._tell = tell
        self._process: asyncio.subprocess.Process | None = None
        self._watchers: list[asyncio.Task[None]] = []

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def start(self) -> EngineInfo:
        # A session of its own: Ctrl-C in the terminal is for the server, which ends the engine.
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "sliceserve.engine.worker",
            self.address,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(self._config) + b"\n")
        self._watchers = [
            asyncio.create_task(self._watch(self._process)),
            asyncio.create_task(self._listen(self._process.stdout)),
        ]
        try:
            return await super().start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        process = self._process
        if process is not None and process.returncode is None and process.stdin is not None:
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
            except asyncio.TimeoutError:
                process.kill()
                await process.wait()
        await super().stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        # Its last words may still be on their way.
        await asyncio.sleep(0.2)
        self._die(f"the engine process ended unexpectedly with exit code {code}")

    async def _listen(self, stdout: asyncio.StreamReader) -> None:
        async for line in stdout:
            self._tell(line.decode(errors="replace").strip())
