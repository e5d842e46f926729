"""The line to the server: one connection after another, and the requests that live across them."""

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from typing import Any

from sliceserve.client.connection import Connection, Dialer
from sliceserve.client.errors import (
    FULL,
    ConnectionRefused,
    RequestFailed,
    RequestTimeout,
    SplitError,
)
from sliceserve.client.request import SplitRequest
from sliceserve.client.stats import RequestStats
from sliceserve.client.telling import TimesTeller
from sliceserve.transport.frames import DataFrame, ProtocolError
from sliceserve.transport.link import CloseCode, LinkClosed
from sliceserve.transport.messages import (
    TIMES_VERSION,
    Bye,
    Cancel,
    Control,
    Credit,
    Drain,
    Error,
    Opened,
    PromptLogprobs,
    Token,
    Want,
    Welcome,
)

logger = logging.getLogger(__name__)

_BYE_TIMEOUT_S = 1.0


class Line:
    """Carries requests to the server and its answers back, over as many connections as it takes.

    What happens to one request is `SplitRequest`'s matter. Here three tasks share a connection:
    one reads, one writes (a message of each request in turn), one watches for silence longer than
    ``timeout_s``. A supervisor runs them on one connection after another, and calls the server
    again when the last was lost and a request needs it. A request that a full server refuses is
    tried again for as long as ``timeout_s``.
    """

    def __init__(self, dialer: Dialer, timeout_s: float) -> None:
        self.num_reconnects = 0
        self._dialer = dialer
        self._timeout_s = timeout_s
        self._live: dict[int, SplitRequest] = {}
        # Ended here, and the server does not know yet.
        self._cancelled: deque[int] = deque()
        self._to_write = asyncio.Event()
        self._ended_stats = RequestStats()
        self._teller = TimesTeller()
        self._drain: Drain | None = None
        self._welcome: Welcome | None = None
        self._connection: Connection | None = None
        # Whether the newest connection has brought news of a request.
        self._was_of_use = True
        self._supervisor: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect. Raises ConnectionRefused."""
        self._connection = await self._dialer.connect()
        self._welcome = self._connection.welcome
        self._supervisor = asyncio.create_task(self._supervise(self._connection))

    async def close(self) -> None:
        """Fail live requests, and let the server forget them. May be called twice."""
        connection, self._connection = self._connection, None
        supervisor, self._supervisor = self._supervisor, None
        if connection is not None:
            with contextlib.suppress(LinkClosed, asyncio.TimeoutError):
                await asyncio.wait_for(self._say_goodbye(connection), _BYE_TIMEOUT_S)
        if supervisor is not None:
            await cancel_and_wait(supervisor)
        if connection is not None:
            await connection.close()

    async def _say_goodbye(self, connection: Connection) -> None:
        await self._tell_times(connection)
        await connection.send(Bye())

    @property
    def welcome(self) -> Welcome:
        """What the server chose, and its limits."""
        if self._welcome is None:
            raise SplitError("there is no connection yet; await start() first")
        return self._welcome

    @property
    def state(self) -> str:
        """How things are, in a word for people."""
        if self._supervisor is None or self._supervisor.done():
            return "closed"
        if self._connection is None:
            return "disconnected"
        return "connected" if self._drain is None else "draining"

    @property
    def num_live(self) -> int:
        return len(self._live)

    @property
    def total(self) -> RequestStats:
        """All requests added up, live ones included."""
        total = RequestStats()
        for stats in (self._ended_stats, *(request.stats for request in self._live.values())):
            total.add(stats)
        return total

    def open(self, request: SplitRequest) -> None:
        """Take a request on. Raises RequestFailed if the line is closed or the server is going."""
        if self._supervisor is None or self._supervisor.done():
            raise RequestFailed("closed", "the connection to the server is closed; open a new one")
        if self._drain is not None:
            raise RequestFailed(
                "draining",
                "the server is going away and takes no new requests; try again in "
                f"{self._drain.seconds:g} s, or another server",
                self._drain.seconds,
            )
        self._live[request.request_id] = request
        self._to_write.set()

    def wake(self) -> None:
        """A request may have something to send."""
        self._to_write.set()

    def drop(self, request: SplitRequest) -> None:
        """Forget a request, here and, unless it has ended there, on the server."""
        if self._live.pop(request.request_id, None) is None:
            return
        self._ended_stats.add(request.stats)
        self._teller.hurry()
        if request.known_to_server and not request.finished:
            self._cancelled.append(request.request_id)
            self._to_write.set()

    def fail(self, request: SplitRequest, error: RequestFailed) -> None:
        """Drop a request and tell its caller why."""
        if request.request_id in self._live:
            request.steps.put_nowait(error)
            self.drop(request)

    def _fail_all(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        for request in list(self._live.values()):
            # One exception each: raised in two places, it would carry both tracebacks.
            self.fail(request, RequestFailed(code, message, retry_after_s))

    async def _supervise(self, connection: Connection) -> None:
        try:
            while True:
                await self._talk(connection)
                connection = await self._come_back()
        except Exception as error:
            # Not foreseen. The callers hear of it; nobody else would.
            logger.exception("the line to the server broke")
            self._fail_all("internal_error", f"the line to the server broke: {error!r}")
        finally:
            self._fail_all("closed", "the connection to the server was closed")

    async def _come_back(self) -> Connection:
        """A new connection, once a request needs one."""
        while True:
            while not self._live:
                self._to_write.clear()
                await self._to_write.wait()
            try:
                connection = await self._dialer.reconnect(self._was_of_use)
            except ConnectionRefused as error:
                # Requests to come have patience of their own.
                self._was_of_use = True
                self._fail_all(
                    "server_unreachable" if error.may_retry else error.code,
                    f"the connection to the server was lost and cannot be restored: {error}",
                    error.retry_after_s,
                )
            else:
                self.num_reconnects += 1
                self._was_of_use = False
                return connection

    async def _talk(self, connection: Connection) -> None:
        """Read and write until the connection ends. Live requests survive a link that is lost and
        a server that goes, but not one that refuses to go on or cannot be understood."""
        self._connection = connection
        self._welcome = connection.welcome
        now = time.monotonic()
        for request in self._live.values():
            request.start_link(now)
        self._to_write.set()
        tasks = [
            asyncio.create_task(work)
            for work in (self._read(connection), self._write(connection), self._watch())
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                await task
        except LinkClosed as error:
            logger.warning("%s; %d requests are live", error, len(self._live))
        except ProtocolError as error:
            await connection.close(CloseCode.PROTOCOL_ERROR, str(error))
            self._fail_all(error.code, str(error))
        except ConnectionRefused as error:
            if error.may_retry:
                logger.warning("%s; %d requests are live", error, len(self._live))
            else:
                self._fail_all(error.code, str(error), error.retry_after_s)
        finally:
            self._connection = self._drain = None
            await cancel_and_wait(*tasks)
            await connection.close()

    async def _read(self, connection: Connection) -> None:
        while True:
            message, num_bytes = await connection.receive()
            self._handle(message, num_bytes)

    async def _write(self, connection: Connection) -> None:
        # The reader learns of the link's end too, and first of all that came before it.
        with contextlib.suppress(LinkClosed):
            while True:
                await self._to_write.wait()
                self._to_write.clear()
                while self._cancelled:
                    await connection.send(Cancel(request_id=self._cancelled[0]))
                    self._cancelled.popleft()
                for request in list(self._live.values()):
                    await self._write_one(connection, request)
                if self._teller.is_due(time.monotonic()):
                    await self._tell_times(connection)

    async def _tell_times(self, connection: Connection) -> None:
        """Let a server that can be told know where the time of tokens went on this side."""
        live = (request.stats.parts for request in self._live.values())
        parts = sum(live, self._ended_stats.parts)
        times = self._teller.tell(parts, time.monotonic())
        if times is not None and connection.welcome.protocol >= TIMES_VERSION:
            await connection.send(times)

    async def _write_one(self, connection: Connection, request: SplitRequest) -> None:
        if request.request_id not in self._live:
            # Ended while another's message was on its way.
            return
        try:
            message = request.next_message(connection.welcome, time.monotonic())
        except RequestFailed as error:
            self.fail(request, error)
            return
        if message is not None:
            num_bytes = await connection.send(message)
            request.stats.bytes_up += num_bytes
            # There may be more; the others come first.
            self._to_write.set()

    async def _watch(self) -> None:
        while True:
            now = time.monotonic()
            for request in list(self._live.values()):
                if request.server_silence_s(now) > self._timeout_s:
                    message = (
                        f"the server has not answered for {self._timeout_s:g} s; check its load "
                        "and the line, or allow more with timeout_s"
                    )
                    self.fail(request, RequestTimeout(message))
            await asyncio.sleep(self._timeout_s / 8)

    def _handle(self, message: Control | DataFrame, num_bytes: int) -> None:
        match message:
            case Drain():
                self._drain = message
            case Bye():
                self._dialer.forget_session()
            case Error(request_id=None):
                raise ConnectionRefused(message.code, message.message, message.retry_after_s)
            case Opened() | Credit() | Want() | PromptLogprobs() | Token() | Error():
                # None: ended here while the message was on its way.
                request = self._live.get(message.request_id or 0)
                if request is not None:
                    self._handle_news(request, message, num_bytes)
            case _:
                name = type(message).__name__
                raise ProtocolError("protocol_error", f"the server sent a {name}")

    def _handle_news(
        self,
        request: SplitRequest,
        message: Opened | Credit | Want | PromptLogprobs | Token | Error,
        num_bytes: int,
    ) -> None:
        self._was_of_use = True
        now = time.monotonic()
        request.stats.bytes_down += num_bytes
        try:
            match message:
                case Opened():
                    request.open(message.next_position, message.credit, now)
                case Credit():
                    request.grant(message.credit, now)
                case Want():
                    request.rewind(message.next_position, now)
                case PromptLogprobs():
                    request.take_prompt_logprobs(message, now)
                case Token():
                    request.take_token(message, now)
                case Error():
                    if not self._postpone(request, message, now):
                        raise RequestFailed(message.code, message.message, message.retry_after_s)
        except RequestFailed as error:
            self.fail(request, error)
        if request.finished:
            self.drop(request)
        self._to_write.set()

    def _postpone(self, request: SplitRequest, refusal: Error, now: float) -> bool:
        """Try a request again that a full server has refused, if it is back in time."""
        if refusal.code not in FULL or refusal.retry_after_s is None:
            return False
        # Those who were refused together must not come back together.
        seconds = refusal.retry_after_s * random.uniform(1.0, 1.5)
        if not request.postpone(seconds, self._timeout_s, now):
            return False
        asyncio.get_running_loop().call_later(seconds, self.wake)
        return True


async def cancel_and_wait(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel tasks and wait for their ends, whatever these are."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
