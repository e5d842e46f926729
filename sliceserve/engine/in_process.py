"""An engine in a thread of this process."""

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable

from sliceserve.configs import CodecConfig, EngineConfig
from sliceserve.engine.build import build_engine
from sliceserve.engine.loop import Peer, run_loop
from sliceserve.engine.messages import Answer, Command, EngineFailed, EngineInfo
from sliceserve.engine.streams import EngineStreams

logger = logging.getLogger(__name__)

_PEER: Peer = b""


class InProcessEngine(EngineStreams):
    """Heads, tests and small tools use this one. ``codec`` and ``profile`` are a head's, as in
    `build_engine`."""

    def __init__(
        self, config: EngineConfig, codec: CodecConfig | None = None, profile: str | None = None
    ) -> None:
        super().__init__()
        self._config = config
        self._codec = codec
        self._profile = profile
        self._mailbox = _QueueMailbox(self._receive_answers)
        self._thread = threading.Thread(target=self._run, name="sliceserve-engine", daemon=True)

    async def start(self) -> EngineInfo:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._thread.start()
        return await self._ask_info()

    async def stop(self) -> None:
        self._mailbox.close()
        # Not join: it would take another thread to wait in, and at a program's exit there is none.
        if self._thread.is_alive():
            await self._ended.wait()
        self._die("the engine was stopped")

    def _post(self, command: Command) -> None:
        self._mailbox.post(command)

    def _run(self) -> None:
        try:
            self._live()
        except Exception as error:
            # The last line of defence: whatever ended the engine, its callers must hear of it.
            logger.debug("the engine ended", exc_info=True)
            self._receive_answers([EngineFailed(str(error) or repr(error))])
        self._on_loop(self._ended.set)

    def _live(self) -> None:
        """The engine's whole life. Its weights are let go on return: a program that exited while
        they were, after ``stop`` had returned, would end this thread within them, and abort."""
        with contextlib.closing(build_engine(self._config, self._codec, self._profile)) as engine:
            run_loop(engine, self._mailbox)

    def _receive_answers(self, answers: list[Answer]) -> None:
        self._on_loop(lambda: self._dispatch(answers))

    def _on_loop(self, work: Callable[[], None]) -> None:
        # A loop that was closed without a word has nobody left who listens.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(work)


class _QueueMailbox:
    """Commands through a queue; answers through a callback."""

    def __init__(self, deliver: Callable[[list[Answer]], None]) -> None:
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._deliver = deliver

    def post(self, command: Command) -> None:
        self._commands.put(command)

    def close(self) -> None:
        self._commands.put(None)

    def receive(self, timeout_s: float | None) -> list[tuple[Peer, Command]] | None:
        received: list[tuple[Peer, Command]] = []
        try:
            command = self._commands.get(block=timeout_s != 0.0, timeout=timeout_s)
            while command is not None:
                received.append((_PEER, command))
                command = self._commands.get_nowait()
        except queue.Empty:
            return received
        return None

    def send(self, answers: list[tuple[Peer, Answer]]) -> None:
        self._deliver([answer for _, answer in answers])
