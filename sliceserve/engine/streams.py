"""What both doors to an engine share: streams of outputs, one a request, on an event loop."""

import asyncio
from collections import deque
from collections.abc import Iterable

from sliceserve.engine.client import EngineDead
from sliceserve.engine.messages import (
    Answer,
    Cancel,
    Command,
    Detach,
    EngineFailed,
    EngineInfo,
    EngineStats,
    GetInfo,
    GetStats,
    Open,
    RequestOutput,
)


class OutputStream:
    """The outputs of one request; see ``RequestStream``. For one reader."""

    def __init__(self) -> None:
        self._waiting: deque[RequestOutput] = deque()
        self._news = asyncio.Event()
        self.opened = False
        self._ended = False
        self._failure: str | None = None

    def put(self, output: RequestOutput) -> None:
        # What was on its way when an older stream of this request was replaced comes before the
        # answer to Open, which tells it all again.
        self.opened |= output.opened or output.finish_reason == "error"
        if not self.opened:
            return
        self._waiting.append(output)
        self._news.set()

    def end(self, failure: str | None = None) -> None:
        self._ended, self._failure = True, failure
        self._news.set()

    def __aiter__(self) -> "OutputStream":
        return self

    async def __anext__(self) -> RequestOutput:
        while not self._waiting:
            if self._failure is not None:
                raise EngineDead(self._failure)
            if self._ended:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._waiting.popleft()


class EngineStreams:
    """Base of the two ``EngineClient``s. A subclass starts the engine, posts commands to it
    (``_post``) and calls ``_dispatch`` or ``_die`` on the event loop with what comes back."""

    def __init__(self) -> None:
        self._streams: dict[str, OutputStream] = {}
        self._info: EngineInfo | None = None
        self._info_waiters: deque[asyncio.Future[EngineInfo]] = deque()
        self._stats_waiters: deque[asyncio.Future[EngineStats]] = deque()
        self._failure: str | None = None

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineDead(self._failure or "the engine has not started yet; await start() first")
        return self._info

    def open(self, request: Open) -> OutputStream:
        self._expect_alive()
        if (older := self._streams.get(request.request_id)) is not None:
            older.end()
        stream = self._streams[request.request_id] = OutputStream()
        self._post(request)
        return stream

    def send(self, command: Command) -> None:
        self._expect_alive()
        if isinstance(command, Cancel | Detach):
            stream = self._streams.pop(command.request_id, None)
            if stream is not None:
                stream.end()
        self._post(command)

    async def stats(self) -> EngineStats:
        self._expect_alive()
        answer: asyncio.Future[EngineStats] = asyncio.get_running_loop().create_future()
        self._stats_waiters.append(answer)
        self._post(GetStats())
        return await answer

    async def _ask_info(self) -> EngineInfo:
        self._expect_alive()
        answer: asyncio.Future[EngineInfo] = asyncio.get_running_loop().create_future()
        self._info_waiters.append(answer)
        self._post(GetInfo())
        return await answer

    def _post(self, command: Command) -> None:
        raise NotImplementedError

    def _expect_alive(self) -> None:
        if self._failure is not None:
            raise EngineDead(self._failure)

    def _dispatch(self, answers: Iterable[Answer]) -> None:
        for answer in answers:
            if isinstance(answer, RequestOutput):
                self._deliver(answer)
            elif isinstance(answer, EngineInfo):
                self._info = answer
                _resolve(self._info_waiters, answer)
            elif isinstance(answer, EngineStats):
                _resolve(self._stats_waiters, answer)
            elif isinstance(answer, EngineFailed):
                self._die(answer.error)

    def _deliver(self, output: RequestOutput) -> None:
        stream = self._streams.get(output.request_id)
        if stream is None:
            # Cancelled here while the output was on its way.
            return
        stream.put(output)
        if stream.opened and output.finish_reason is not None:
            del self._streams[output.request_id]
            stream.end()

    def _die(self, failure: str) -> None:
        """Every waiter learns why; later calls raise at once."""
        if self._failure is not None:
            return
        self._failure = failure
        for stream in self._streams.values():
            stream.end(failure)
        self._streams.clear()
        for waiters in (self._info_waiters, self._stats_waiters):
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(EngineDead(failure))
            waiters.clear()


def _resolve(waiters: "deque[asyncio.Future]", answer: Answer) -> None:
    """Answers come in the order of the questions; a caller that gave up has left a done future."""
    if waiters:
        waiter = waiters.popleft()
        if not waiter.done():
            waiter.set_result(answer)
