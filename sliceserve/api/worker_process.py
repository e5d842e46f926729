"""An API worker, seen from the process that starts it.

The process is ``python -m sliceserve.api.worker``. Its standard input brings ``WorkerSettings`` as
one JSON line, and then orders; its standard output answers with ``Ready`` or ``Failed``. It ends
when its input closes: a worker never outlives its server.
"""

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import sys

import msgspec

from sliceserve.api.listening import ServerError
from sliceserve.configs import Keyring, ServerConfig
from sliceserve.engine.messages import EngineFailed

_numbers = itertools.count()


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``listener`` is the file descriptor of a socket that is bound; ``peer`` what the engine knows
    the worker as; ``shared`` the folder where workers count together."""

    config: ServerConfig
    engine_address: str
    peer: bytes
    listener: int
    shared: str


class Drain(msgspec.Struct, tag=True, frozen=True):
    """Let live requests finish, for ``drain_timeout_s`` at most; then end."""


class End(msgspec.Struct, tag=True, frozen=True):
    """End at once, with a word to all whose requests are live."""


class Ready(msgspec.Struct, tag=True, frozen=True):
    """Requests are answered from now on."""


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The worker ends; ``error`` is a sentence for the operator."""

    error: str


class Admit(msgspec.Struct, tag=True, frozen=True):
    """Let others in from now on."""

    keyring: Keyring


Order = Drain | End | Admit | EngineFailed
Report = Ready | Failed


class WorkerProcess:
    """One worker. Made by `spawn`."""

    def __init__(self, process: asyncio.subprocess.Process, peer: bytes) -> None:
        self.peer = peer
        self._process = process
        self._serves = asyncio.Event()
        self._life = asyncio.create_task(self._listen())

    @classmethod
    async def spawn(
        cls, config: ServerConfig, engine_address: str, listener: socket.socket, shared: str
    ) -> "WorkerProcess":
        """Start a worker that serves the engine at ``engine_address`` on ``listener``, and counts
        for /metrics and for limits in the folder ``shared``, as others do."""
        # Never used again: the engine ignores what a dead one may still have to say.
        peer = b"api-%d" % next(_numbers)
        # A session of its own: Ctrl-C in the terminal is for the server, which ends its workers.
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "sliceserve.api.worker",
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": shared},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
        worker = cls(process, peer)
        worker._write(
            WorkerSettings(
                config=config,
                engine_address=engine_address,
                peer=peer,
                listener=listener.fileno(),
                shared=shared,
            )
        )
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ready(self) -> None:
        """Return when it serves. Raises ServerError, with its last words, if it ends instead."""
        serves = asyncio.create_task(self._serves.wait())
        try:
            await asyncio.wait({serves, self._life}, return_when=asyncio.FIRST_COMPLETED)
            if not self._serves.is_set():
                raise ServerError(f"an API worker cannot start: {self._life.result()}")
        finally:
            serves.cancel()

    async def ended(self) -> str:
        """Wait for its end, and say how it came."""
        # Several may wait; one that gives up must not take the others with it.
        return await asyncio.shield(self._life)

    def order(self, order: Order) -> None:
        """Tell it what to do. One that has ended is past telling."""
        self._write(order)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def _write(self, message: WorkerSettings | Order) -> None:
        assert self._process.stdin is not None
        if not self._process.stdin.is_closing():
            self._process.stdin.write(msgspec.json.encode(message) + b"\n")

    async def _listen(self) -> str:
        assert self._process.stdout is not None
        words = None
        async for line in self._process.stdout:
            report = msgspec.json.decode(line, type=Report)
            if isinstance(report, Ready):
                self._serves.set()
            else:
                words = report.error
        code = await self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        return words or _in_words(code)


def _in_words(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
