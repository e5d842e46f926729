"""From a checked request to an HTTP answer, whole or streamed; the same for all endpoints."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import msgspec
from fastapi import Request
from starlette.responses import Response

from sliceserve.api.backend import Backend
from sliceserve.api.errors import ApiError, as_api_error, invalid
from sliceserve.api.event_stream import EventStream
from sliceserve.api.gate import account_of
from sliceserve.api.limits import Account
from sliceserve.api.metrics import Metrics, RequestTimer
from sliceserve.api.protocol import GenerationRequest
from sliceserve.api.replies import PromptTokensDetails, Usage, as_json
from sliceserve.api.traces import RequestTrace
from sliceserve.configs import SamplingParams
from sliceserve.engine.generation import Caller, GenerationError, TextChunk, stream_text
from sliceserve.tracing import read_trace_parent

# One request may not fill the engine by itself.
MAX_ANSWERS = 128
# Chunks that may wait for a slow reader, for each answer.
_MAX_WAITING = 32

T = TypeVar("T")


class Format(Protocol):
    """How one endpoint words its answers. Made for one request; may keep state."""

    def events(self, job: "Job", chunks: "Chunks") -> AsyncIterator[bytes]:
        """The server-sent events of a stream, an error among ``chunks`` included: the status has
        been sent by then."""
        ...

    def whole(self, answers: list[list[TextChunk]], usage: Usage) -> msgspec.Struct:
        """Everything at once."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to make."""

    prompt: list[int]
    sampling: SamplingParams


@dataclass(slots=True)
class Job:
    """A request, ready to run. ``answers`` are ordered by prompt, then by choice. With
    ``shows_special_tokens`` those are a part of the answers' text. ``num_sampled`` counts the
    tokens of each so far, ``num_cached`` how much of its prompt was in a prefix cache, once that
    is known."""

    request: GenerationRequest
    account: Account
    caller: Caller
    answers: list[Answer]
    num_prompt_tokens: int
    shows_special_tokens: bool = False
    num_sampled: Counter[int] = field(default_factory=Counter)
    num_cached: Counter[int] = field(default_factory=Counter)

    @property
    def usage(self) -> Usage:
        # The prompt that several choices share counts once.
        firsts = range(0, len(self.answers), self.request.num_choices)
        num_cached = sum(self.num_cached[index] for index in firsts)
        return _usage(self.num_prompt_tokens, self.num_sampled.total(), num_cached)

    def usage_of(self, index: int) -> Usage:
        """Of one answer, so far."""
        num_prompt = len(self.answers[index].prompt)
        return _usage(num_prompt, self.num_sampled[index], self.num_cached[index])


def _usage(num_prompt: int, num_sampled: int, num_cached: int) -> Usage:
    details = PromptTokensDetails(num_cached)
    return Usage(num_prompt, num_sampled, num_prompt + num_sampled, details)


def plan_job(
    http: Request,
    request: GenerationRequest,
    prompts: list[list[int]],
    backend: Backend,
    *,
    guide: str | None = None,
    shows_special_tokens: bool = False,
) -> Job:
    """Check prompts (token ids) against the limits of the model and of who asks, and charge them.
    ``guide`` is a grammar that answers follow for more than the request's own wish. Raises
    ApiError."""
    account = account_of(http)
    account.expect_model(request.model)
    account.expect_cut(0)
    max_model_len = backend.expect_generator().max_model_len
    if len(prompts) * request.num_choices > MAX_ANSWERS:
        raise invalid(f"at most {MAX_ANSWERS} answers can be asked for at once", "n")
    answers = []
    for prompt in prompts:
        _expect_fits(prompt, request.wanted_tokens, max_model_len)
        max_tokens = request.wanted_tokens or max_model_len - len(prompt)
        for choice in range(request.num_choices):
            sampling = request.sampling(max_tokens, choice)
            if guide is not None:
                sampling = msgspec.structs.replace(sampling, guide=guide)
            answers.append(Answer(prompt, sampling))
    num_prompt_tokens = sum(map(len, prompts))
    account.admit(num_prompt_tokens)
    trace_parent = read_trace_parent(http.headers.get("traceparent", ""))
    caller = Caller(account.name, account.priority(request.priority), trace_parent)
    shows_special_tokens = shows_special_tokens or not request.skip_special_tokens
    return Job(request, account, caller, answers, num_prompt_tokens, shows_special_tokens)


async def answer(
    http: Request, job: Job, form: Format, backend: Backend, metrics: Metrics
) -> Response:
    """Generate, and end at once if the client goes away. Raises ApiError for what fails before
    the first token; later failures of a stream are an event in it."""
    chunks = _generate(job, backend, metrics)
    try:
        if not job.request.stream:
            reply = await _while_connected(http, _collect(job, chunks, form))
            return as_json(reply)
        # Refusals come before the first token, and must still find a status to set.
        first = await _while_connected(http, anext(chunks))
    except Exception as error:
        raise as_api_error(error) from error
    return EventStream(form.events(job, _again(first, chunks, metrics)), chunks)


async def _collect(job: Job, chunks: "Chunks", form: Format) -> msgspec.Struct:
    answers: list[list[TextChunk]] = [[] for _ in job.answers]
    async for index, chunk in chunks:
        answers[index].append(chunk)
    return form.whole(answers, job.usage)


async def _again(first: "tuple[int, TextChunk]", chunks: "Chunks", metrics: Metrics) -> "Chunks":
    """All of ``chunks``, of which ``first`` has been taken already. Raises ApiError alone."""
    yield first
    try:
        async for chunk in chunks:
            yield chunk
    except Exception as error:
        told = as_api_error(error)
        metrics.count_error("thin", told.code, told.may_retry)
        raise told from error


Chunks = AsyncGenerator[tuple[int, TextChunk], None]


async def _generate(job: Job, backend: Backend, metrics: Metrics) -> Chunks:
    """Chunks of all answers as they come, with the index of theirs. Closing it cancels all."""
    waiting: asyncio.Queue[tuple[int, TextChunk | Exception | None]]
    waiting = asyncio.Queue(_MAX_WAITING * len(job.answers))
    tasks = [
        asyncio.create_task(_run(index, job, backend, metrics, waiting))
        for index in range(len(job.answers))
    ]
    try:
        num_running = len(tasks)
        while num_running:
            index, news = await waiting.get()
            if news is None:
                num_running -= 1
            elif isinstance(news, Exception):
                raise news
            else:
                num_tokens = int(news.token is not None)
                job.num_sampled[index] += num_tokens
                job.account.spend(num_tokens)
                job.num_cached[index] = news.num_cached
                yield index, news
    finally:
        for task in tasks:
            task.cancel()


async def _run(
    index: int,
    job: Job,
    backend: Backend,
    metrics: Metrics,
    waiting: "asyncio.Queue[tuple[int, TextChunk | Exception | None]]",
) -> None:
    """Put the chunks of one answer, then None, or the error that ended it."""
    wanted = job.answers[index]
    caller, trace = job.caller, _start_trace(job, wanted, backend)
    if trace is not None:
        caller = replace(caller, trace_parent=trace.traceparent)
    timer = RequestTimer(
        metrics,
        "thin",
        job.caller.tenant,
        len(wanted.prompt),
        # The prompt that several choices share counts once.
        shares_prompt=index % job.request.num_choices > 0,
        trace=trace,
    )
    chunks = _stream(job, wanted, caller, backend)
    last: Exception | None = GenerationError("internal_error", "the answer broke off")
    try:
        async for chunk in chunks:
            if job.request.prompt_only:
                # The one token that an engine makes at least is nobody's.
                chunk = replace(chunk, text="", token=None, finish_reason="length")
            if chunk.token is not None:
                timer.token(chunk.num_cached, chunk.times)
            if chunk.finish_reason is not None:
                timer.finish(chunk.finish_reason)
                last = None
            await waiting.put((index, chunk))
    except Exception as error:
        timer.fail(str(error))
        last = error
    except asyncio.CancelledError:
        if last is not None:
            timer.abort()
        raise
    finally:
        await chunks.aclose()
    await waiting.put((index, last))


def _stream(
    job: Job, wanted: Answer, caller: Caller, backend: Backend
) -> AsyncGenerator[TextChunk, None]:
    return stream_text(
        backend.expect_generator(),
        backend.tokenizer,
        wanted.prompt,
        wanted.sampling,
        job.request.stop_strings,
        caller,
        include_stop=job.request.include_stop_str_in_output,
        skip_special_tokens=not job.shows_special_tokens,
    )


def _start_trace(job: Job, wanted: Answer, backend: Backend) -> RequestTrace | None:
    if backend.tracing is None:
        return None
    return RequestTrace(
        backend.tracing,
        job.request.OPERATION,
        backend.models[0],
        job.caller.trace_parent,
        wanted.sampling,
        len(wanted.prompt),
    )


async def _while_connected(http: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client goes away."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(_disconnected(http))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            # Nobody reads it; 499 is what logs call a request that its client closed.
            raise ApiError(499, "the client went away", "client_closed_request")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnected(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _expect_fits(prompt: Sequence[int], wanted: int | None, max_model_len: int) -> None:
    if not prompt:
        raise invalid("the prompt has no tokens; send at least one")
    num_tokens = len(prompt) + (1 if wanted is None else wanted)
    if num_tokens > max_model_len:
        answer = "at least 1" if wanted is None else str(wanted)
        raise invalid(
            f"This model's maximum context length is {max_model_len} tokens. However, you "
            f"requested {num_tokens} tokens ({len(prompt)} in the prompt, {answer} in the "
            "completion). Shorten the prompt or ask for fewer tokens.",
            code="context_length_exceeded",
        )
