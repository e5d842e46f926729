"""One split connection after its handshake: messages of the wire to commands of the engine, and
the engine's outputs back."""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from sliceserve.api.errors import ApiError
from sliceserve.api.gate import account_of
from sliceserve.api.lifecycle import Lifecycle
from sliceserve.api.metrics import Metrics, RequestTimer
from sliceserve.api.split_request import SplitRequest
from sliceserve.api.traces import RequestTrace
from sliceserve.engine import messages as engine_messages
from sliceserve.engine.client import EngineClient, EngineDead, RequestStream
from sliceserve.tracing import Tracing
from sliceserve.transport.frames import DataFrame, ProtocolError, decode, encode
from sliceserve.transport.link import CloseCode
from sliceserve.transport.messages import (
    TIMES_VERSION,
    Bye,
    Cancel,
    Control,
    Error,
    Open,
    Times,
    Token,
    Welcome,
)

logger = logging.getLogger(__name__)

_RETRY_AFTER_S = 1.0
# For last words to a client that may have stopped reading.
_CLOSE_TIMEOUT_S = 1.0
# More than a token takes, on a client that is honest about it.
_MAX_TOKEN_US = 60_000_000


@dataclass(frozen=True, slots=True)
class Ending:
    """How a connection ends. ``code`` None: it is gone already. ``words`` come before the close,
    ``reason`` with it. ``keep``: its requests wait in the engine for a resume.

    An Error fails the client's requests; after a Bye it takes them elsewhere, or here again.
    """

    code: int | None
    words: Error | Bye | None = None
    reason: str = ""
    keep: bool = True


async def receive(
    websocket: WebSocket, max_frame_bytes: int, max_frame_tokens: int, metrics: Metrics
) -> Control | DataFrame:
    """The next message. Raises WebSocketDisconnect and ProtocolError."""
    event = await websocket.receive()
    if event["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(event.get("code", CloseCode.ABNORMAL))
    data = event.get("bytes")
    if data is None:
        raise ProtocolError("protocol_error", "received a text message; messages here are binary")
    metrics.count_uplink(len(data))
    return decode(data, max_frame_bytes, max_frame_tokens)


async def refuse(websocket: WebSocket, ending: Ending, metrics: Metrics) -> None:
    """Say why, if there is something to say, and close."""
    if isinstance(ending.words, Error):
        count_error(metrics, ending.words)

    async def last_words() -> None:
        if ending.words is not None:
            await websocket.send_bytes(encode(ending.words))
        if ending.code is not None:
            await websocket.close(ending.code, ending.reason)

    # RuntimeError: the server around the app has closed the socket already.
    with contextlib.suppress(WebSocketDisconnect, RuntimeError, asyncio.TimeoutError):
        await asyncio.wait_for(last_words(), _CLOSE_TIMEOUT_S)


def count_error(metrics: Metrics, error: Error) -> None:
    may_retry = error.retry_after_s is not None or error.code == "draining"
    metrics.count_error("split", error.code, may_retry)


def in_wire_words(refused: ApiError) -> Error:
    """What HTTP would have answered, as a message that ends the connection."""
    return Error(code=refused.code, message=refused.detail, retry_after_s=refused.retry_after_s)


class Session:
    """Runs on one socket: a reader, a writer with a bounded queue, and a relay for each live
    request. A client that does not read is cut off, and finds its requests when it returns."""

    def __init__(
        self,
        websocket: WebSocket,
        welcome: Welcome,
        engine: EngineClient,
        lifecycle: Lifecycle,
        metrics: Metrics,
        max_waiting: int,
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing
        self._websocket = websocket
        self._welcome = welcome
        self._engine = engine
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._account = account_of(websocket)
        self._tenant = self._account.name
        self._tells_times = welcome.protocol >= TIMES_VERSION
        # Tokens whose times the client may tell.
        self._num_untold = 0
        self._relays: dict[int, asyncio.Task[None]] = {}
        self._waiting: asyncio.Queue[bytes] = asyncio.Queue(max_waiting)
        self._ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self.tell(welcome)

    @property
    def cut(self) -> int:
        return self._welcome.cut

    async def run(self) -> None:
        """Until the connection ends, for whatever reason."""
        tasks = [self._spawn(self._read()), self._spawn(self._write())]
        try:
            ending = await self._ending
            self._release(ending.keep)
        finally:
            # A server that stops in the middle leaves nothing that a resume could find.
            self._release(keep=False)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await refuse(self._websocket, ending, self._metrics)

    def tell(self, message: Control) -> None:
        """Queue a message for the client; never waits."""
        if isinstance(message, Error):
            count_error(self._metrics, message)
        try:
            self._waiting.put_nowait(encode(message))
        except asyncio.QueueFull:
            self._end(Ending(CloseCode.TRY_AGAIN_LATER, reason="the client reads too slowly"))

    def supersede(self) -> None:
        """The client has come back on another connection, which takes the requests from here."""
        self._release(keep=True)
        self._end(Ending(CloseCode.POLICY_VIOLATION, reason="continued on another connection"))

    def leave(self) -> None:
        """The server ends."""
        self._end(Ending(CloseCode.GOING_AWAY, Bye(), "the server is shutting down", keep=False))

    def _end(self, ending: Ending) -> None:
        if not self._ending.done():
            self._ending.set_result(ending)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """A task whose failure ends the connection."""

        def check(task: "asyncio.Task[None]") -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                self._end(_ending_after(error))

        task = asyncio.create_task(work)
        task.add_done_callback(check)
        return task

    def _release(self, keep: bool) -> None:
        """Let go of all requests at once, before anything else can happen."""
        relays, self._relays = self._relays, {}
        for request_id, relay in relays.items():
            relay.cancel()
            if not keep:
                self._metrics.count_abort("split", self._tenant)
            name = self._engine_id(request_id)
            with contextlib.suppress(EngineDead):
                self._engine.send(
                    engine_messages.Detach(name) if keep else engine_messages.Cancel(name)
                )

    def _engine_id(self, request_id: int) -> str:
        return f"{self._welcome.resume_token}:{request_id}"

    async def _write(self) -> None:
        while True:
            data = await self._waiting.get()
            try:
                await self._websocket.send_bytes(data)
            except RuntimeError as error:
                # The server around the app has closed the socket by itself.
                raise WebSocketDisconnect(CloseCode.ABNORMAL) from error
            self._metrics.count_downlink(len(data))

    async def _read(self) -> None:
        limits = self._welcome
        while True:
            try:
                message = await receive(
                    self._websocket, limits.max_frame_bytes, limits.max_frame_tokens, self._metrics
                )
                self._handle(message)
            except ProtocolError as error:
                if error.request_id is None:
                    raise
                self._fail(error.request_id, error.code, error.message)

    def _handle(self, message: Control | DataFrame) -> None:
        match message:
            case DataFrame():
                self._append(message)
            case Open():
                self._open(message)
            case Cancel():
                if message.request_id in self._relays:
                    self._metrics.count_abort("split", self._tenant)
                self._cancel(message.request_id)
            case Error(request_id=int(request_id)):
                self._cancel(request_id)
            case Error():
                self._end(Ending(CloseCode.NORMAL))
            case Bye():
                self._end(Ending(CloseCode.NORMAL, keep=False))
            case Times() if self._tells_times:
                self._count_times(message)
            case _:
                raise ProtocolError(
                    "protocol_error",
                    f"received a {type(message).__name__}, which clients do not send here",
                )

    def _append(self, frame: DataFrame) -> None:
        if frame.request_id not in self._relays:
            if frame.first_position + len(frame.packets) <= self._welcome.early_tokens:
                # It came after an Open that was refused.
                return
            raise ProtocolError(
                "unknown_request",
                f"no request {frame.request_id} is live here; send Open first",
                frame.request_id,
            )
        self._metrics.count_packets(len(frame.packets), self._engine.info.hidden_size)
        self._engine.send(
            engine_messages.AppendPackets(
                self._engine_id(frame.request_id), frame.first_position, list(frame.packets)
            )
        )

    def _open(self, message: Open) -> None:
        request_id = message.request_id
        if self._lifecycle.draining:
            words = "this server is shutting down; send the request to another one"
            self._fail(request_id, "draining", words, _RETRY_AFTER_S)
            return
        num_others = len(self._relays.keys() - {request_id})
        if num_others >= self._welcome.max_requests:
            self._fail(
                request_id,
                "overloaded",
                f"{num_others} requests are live on this connection, the most allowed; wait for "
                "one to end",
                _RETRY_AFTER_S,
            )
            return
        self._expect_short_prefix(message)
        try:
            self._account.admit(message.num_prompt, resumed=bool(message.outputs))
        except ApiError as refused:
            self._fail(request_id, refused.code, refused.detail, refused.retry_after_s)
            return
        if (older := self._relays.pop(request_id, None)) is not None:
            older.cancel()
        timer = RequestTimer(
            self._metrics,
            "split",
            self._tenant,
            message.num_prompt,
            resumed=bool(message.outputs),
            trace=self._start_trace(message),
        )
        request = SplitRequest(message, timer, self._tells_times)
        outputs = self._engine.open(
            engine_messages.Open(
                request_id=self._engine_id(request_id),
                entry_layer=self._welcome.cut,
                num_prompt=message.num_prompt,
                prompt=message.prompt_ids,
                outputs=message.outputs,
                sampling=message.sampling,
                codec=engine_messages.packet_codec(self._welcome.codec, self._welcome.profile),
                prefix=message.prefix,
                tenant=self._tenant,
                priority=self._account.priority(message.priority),
                may_queue=True,
            )
        )
        self._relays[request_id] = self._spawn(self._relay(request, outputs))

    def _start_trace(self, message: Open) -> RequestTrace | None:
        if self._tracing is None:
            return None
        trace = RequestTrace(
            self._tracing,
            "text_completion",
            self._welcome.model,
            message.trace_parent,
            message.sampling,
            message.num_prompt,
        )
        trace.set({"sliceserve.cut": self._welcome.cut, "sliceserve.codec": self._welcome.codec})
        return trace

    def _count_times(self, times: Times) -> None:
        """Believe no more of the client than there can be."""
        num_tokens = min(times.num_tokens, self._num_untold)
        self._num_untold -= num_tokens
        most = num_tokens * _MAX_TOKEN_US
        told = (min(us, most) for us in (times.head_us, times.encode_us, times.link_us))
        head_us, encode_us, link_us = told
        self._metrics.count_times(
            Times(num_tokens=num_tokens, head_us=head_us, encode_us=encode_us, link_us=link_us)
        )

    def _expect_short_prefix(self, message: Open) -> None:
        limits = self._welcome
        num_known = min(message.num_prompt + len(message.outputs), limits.max_model_len)
        most = num_known // limits.block_size if limits.block_size else 0
        if len(message.prefix) > most:
            raise ProtocolError(
                "invalid_request",
                f"the prefix names {len(message.prefix)} blocks, but {num_known} positions have at "
                f"most {most} whole ones of the size in Welcome",
                message.request_id,
            )

    def _fail(
        self, request_id: int, code: str, message: str, retry_after_s: float | None = None
    ) -> None:
        """An error that ends one request."""
        self._cancel(request_id)
        self.tell(
            Error(code=code, message=message, request_id=request_id, retry_after_s=retry_after_s)
        )

    def _cancel(self, request_id: int) -> None:
        relay = self._relays.pop(request_id, None)
        if relay is not None:
            relay.cancel()
        # Without a relay it may still wait in the engine, left behind by a lost connection.
        self._engine.send(engine_messages.Cancel(self._engine_id(request_id)))

    async def _relay(self, request: SplitRequest, outputs: RequestStream) -> None:
        """Tell the client all news of one request."""
        finished = False
        try:
            with self._lifecycle.work():
                async for output in outputs:
                    finished = output.finish_reason is not None
                    self._account.spend(len(output.tokens))
                    for message in request.translate(output):
                        self._num_untold += isinstance(message, Token)
                        self.tell(message)
        finally:
            request.leave()
        # Not reached when cancelled: then another session of this process has it.
        self._relays.pop(request.request_id, None)
        if not finished:
            # The client has come back through another process.
            self.supersede()


def _ending_after(error: BaseException) -> Ending:
    if isinstance(error, WebSocketDisconnect):
        return Ending(None)
    if isinstance(error, ProtocolError):
        return Ending(CloseCode.PROTOCOL_ERROR, Error(code=error.code, message=error.message))
    if isinstance(error, EngineDead):
        return Ending(CloseCode.INTERNAL_ERROR, Bye(), "the engine has stopped", keep=False)
    logger.error("unexpected error on a split connection", exc_info=error)
    words = Error(code="internal_error", message="the server failed; its log says why")
    return Ending(CloseCode.INTERNAL_ERROR, words)
