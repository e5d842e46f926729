"""The generator of a split model: a head engine here, and a line to the server."""

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence

from msgspec import structs

from sliceserve.client.connection import Dial, Dialer
from sliceserve.client.errors import RequestFailed, RequestTimeout, SplitError
from sliceserve.client.line import Line, cancel_and_wait
from sliceserve.client.profiles import FetchProfile, hold_profile
from sliceserve.client.request import SplitRequest
from sliceserve.client.stats import RequestStats, SessionStats
from sliceserve.client.traces import SplitTrace
from sliceserve.configs import Patience, SamplingParams
from sliceserve.engine.client import EngineClient, EngineDead, RequestStream
from sliceserve.engine.generation import NOBODY, Caller, Generated
from sliceserve.engine.messages import AppendTokens, Cancel, EngineInfo, Open
from sliceserve.engine.profiles import profile_store
from sliceserve.tracing import Tracing
from sliceserve.transport.messages import Hello, Welcome


class SplitSession:
    """A ``Generator`` whose first layers run here and whose others run on the server, for many
    requests at once. Lives on one event loop.

    ``dial`` makes a link, ``make_head`` an engine (not yet started) for the layers below the cut
    that a Welcome names, ``hello`` says what is wanted. ``fetch_profile`` gets what a codec with a
    profile lacks. ``tracing``, which is closed with the session, gets a span for each request.
    """

    def __init__(
        self,
        dial: Dial,
        make_head: Callable[[Welcome], EngineClient],
        hello: Hello,
        patience: Patience | None = None,
        fetch_profile: FetchProfile | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.tracing = tracing
        patience = patience or Patience()
        self._line = Line(Dialer(dial, hello, patience), patience.timeout_s)
        self._make_head = make_head
        self._fetch_profile = fetch_profile
        self._codec = hello.codec
        self._hide_tokens = hello.hide_tokens
        self._ids = itertools.count(1)
        self._head: EngineClient | None = None

    async def start(self) -> None:
        """Connect, fetch the codec's profile if it is missing, and load the head up to the cut that
        the server chose.

        Raises ConnectionRefused, or SplitError for a profile or head that cannot be loaded.
        """
        await self._line.start()
        try:
            await self._hold_profile(self.welcome.profile)
        except BaseException:
            await self._line.close()
            raise
        head = self._make_head(self.welcome)
        try:
            await head.start()
        except BaseException as error:
            await self._line.close()
            await head.stop()
            if isinstance(error, EngineDead):
                raise SplitError(f"the first layers cannot be loaded: {error}") from error
            raise
        self._head = head

    async def close(self) -> None:
        """End live requests, here and on the server, and stop the head. May be called twice."""
        await self._line.close()
        if self._head is not None:
            await self._head.stop()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)

    @property
    def state(self) -> str:
        """How the line is: "connected", "disconnected" (until a request needs it), "draining" or
        "closed"."""
        return self._line.state

    @property
    def welcome(self) -> Welcome:
        """What the server chose, and its limits."""
        return self._line.welcome

    @property
    def head(self) -> EngineClient:
        """The engine that runs the first layers."""
        if self._head is None:
            raise SplitError("the session has not been started; await start() first")
        return self._head

    @property
    def info(self) -> EngineInfo:
        """What the head runs."""
        return self.head.info

    @property
    def max_model_len(self) -> int:
        """The shorter of the two sides' limits."""
        return min(self.welcome.max_model_len, self.info.max_model_len)

    @property
    def stats(self) -> SessionStats:
        return SessionStats(
            hidden_size=self.info.hidden_size,
            num_live=self._line.num_live,
            num_reconnects=self._line.num_reconnects,
            total=self._line.total,
        )

    async def generate(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams,
        caller: Caller = NOBODY,
        stats: RequestStats | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Generated, None]:
        """See ``Generator``. To the server the tenant is the one whose key opened the connection;
        ``caller.tenant`` parts what the head keeps. ``stats``, an empty one, is filled as the
        request goes on. It fails if it has not ended ``timeout_s`` seconds from now.

        One token is worked on ahead of the caller, never more. Raises RequestFailed.
        """
        head = self.head
        request = SplitRequest(
            next(self._ids),
            list(prompt),
            self._settle(sampling, len(prompt)),
            RequestStats() if stats is None else stats,
            time.monotonic(),
            caller.priority,
        )
        trace = self._start_trace(request, caller)
        self._line.open(request)
        head_id = str(request.request_id)
        failure: str | None = None
        listener: asyncio.Task[None] | None = None
        alarm: asyncio.TimerHandle | None = None
        if timeout_s is not None:
            loop = asyncio.get_running_loop()
            alarm = loop.call_later(max(0.0, timeout_s), self._time_out, request)
        try:
            stream = head.open(self._open_in_head(request, head_id, caller.tenant))
            listener = asyncio.create_task(self._listen(request, stream, trace))
            position = len(request.prompt)
            while True:
                step = await request.steps.get()
                if isinstance(step, RequestFailed):
                    failure = str(step)
                    raise step
                if step.finish_reason is None:
                    head.send(AppendTokens(head_id, position, [step.token.token_id]))
                    position += 1
                yield step
                if step.finish_reason is not None:
                    return
        except EngineDead as error:
            raise _head_stopped(error) from error
        finally:
            if alarm is not None:
                alarm.cancel()
            self._line.drop(request)
            with contextlib.suppress(EngineDead):
                head.send(Cancel(head_id))
            if trace is not None:
                trace.end(request.stats, failure)
            if listener is not None:
                await cancel_and_wait(listener)

    def _start_trace(self, request: SplitRequest, caller: Caller) -> SplitTrace | None:
        """A trace that others began goes on, be it past this session."""
        request.trace_parent = caller.trace_parent
        if self.tracing is None:
            return None
        trace = SplitTrace(self.tracing, self.welcome, caller.trace_parent, request.sampling)
        request.trace_parent = trace.traceparent
        return trace

    def _time_out(self, request: SplitRequest) -> None:
        message = (
            f"the call's time is over with {request.stats.num_tokens} tokens of this answer; allow "
            "it more with timeout_s, or ask for fewer with max_tokens"
        )
        self._line.fail(request, RequestTimeout(message))

    async def _hold_profile(self, digest: str | None) -> None:
        if digest is not None and self._fetch_profile is not None:
            await hold_profile(profile_store(), digest, self._fetch_profile)

    def _settle(self, sampling: SamplingParams, num_prompt: int) -> SamplingParams:
        """Fill in what two servers might choose differently. Raises RequestFailed for a prompt
        that leaves no room, and for what cannot be done."""
        if num_prompt < 1:
            raise RequestFailed("invalid_request", "a prompt needs at least one token, got none")
        if sampling.needs_prompt and self._hide_tokens:
            raise RequestFailed(
                "invalid_request",
                "repetition_penalty and prompt_logprobs take the prompt's token ids to the server, "
                "and this client hides them; leave these settings out, or use a client without "
                "hide_tokens",
            )
        room = self.max_model_len - num_prompt
        if room < 1:
            raise RequestFailed(
                "context_length_exceeded",
                f"the prompt has {num_prompt} tokens; client and server take at most "
                f"{self.max_model_len} tokens, prompt and answer together; shorten the prompt",
            )
        sampling = structs.replace(sampling, max_tokens=min(sampling.max_tokens, room))
        if sampling.seed is None and sampling.temperature > 0:
            sampling = structs.replace(sampling, seed=secrets.randbits(63))
        return sampling

    def _open_in_head(self, request: SplitRequest, head_id: str, tenant: str) -> Open:
        return Open(
            request_id=head_id,
            num_prompt=len(request.prompt),
            prompt=request.prompt,
            sampling=request.sampling,
            codec=self._codec,
            tenant=tenant,
        )

    async def _listen(
        self, request: SplitRequest, stream: RequestStream, trace: SplitTrace | None
    ) -> None:
        """Hand the head's packets over, until the stream ends or fails."""
        try:
            async for output in stream:
                request.stats.head_s += output.seconds
                if output.finish_reason is not None:
                    raise RequestFailed(
                        output.error_code or "internal_error",
                        output.error or f"the head ended the request: {output.finish_reason}",
                        output.retry_after_s,
                    )
                if output.opened:
                    request.begin(output.packets)
                elif output.packets:
                    request.take_packets(output.start, output.packets)
                    if trace is not None and request.num_encoded >= len(request.prompt):
                        trace.note_prompt_encoded()
                    if output.times is not None:
                        request.count_head(output.start, output.times)
                self._line.wake()
        except EngineDead as error:
            self._line.fail(request, _head_stopped(error))
        except RequestFailed as error:
            self._line.fail(request, error)


def _head_stopped(error: EngineDead) -> RequestFailed:
    return RequestFailed(
        "internal_error", f"the head engine has stopped: {error}; make a new client"
    )
