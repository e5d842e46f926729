"""What both doors to an engine share: streams of outputs, one a request, on an event loop."""

import asyncio
from collections import Counter, deque
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
    Moved,
    Open,
    RequestOutput,
)


class OutputStream:
    """The outputs of one request; see ``RequestStream``. For one reader."""

    def __init__(self) -> None:
        self._waiting: deque[RequestOutput] = deque()
        self._news = asyncio.Event()
        self._ended = False
        self._failure: str | None = None

    def put(self, output: RequestOutput) -> None:
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
        # How many answers to Open are still to come.
        self._unanswered: Counter[str] = Counter()
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
        self._unanswered[request.request_id] += 1
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
            elif isinstance(answer, Moved):
                self._give_up(answer.request_id)
            elif isinstance(answer, EngineInfo):
                self._info = answer
                _resolve(self._info_waiters, answer)
            elif isinstance(answer, EngineStats):
                _resolve(self._stats_waiters, answer)
            elif isinstance(answer, EngineFailed):
                self._die(answer.error)

    def _deliver(self, output: RequestOutput) -> None:
        request_id = output.request_id
        if output.opened:
            self._unanswered[request_id] -= 1
        if self._is_opening(request_id):
            # News for an older stream; the answer to the last Open tells it all again.
            return
        stream = self._streams.get(request_id)
        if stream is None:
            # Cancelled here while the output was on its way.
            return
        stream.put(output)
        if output.finish_reason is not None:
            del self._streams[request_id]
            stream.end()

    def _give_up(self, request_id: str) -> None:
        if self._is_opening(request_id):
            # It is coming back.
            return
        stream = self._streams.pop(request_id, None)
        if stream is not None:
            stream.end()

    def _is_opening(self, request_id: str) -> bool:
        if self._unanswered[request_id] > 0:
            return True
        del self._unanswered[request_id]
        return False

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
