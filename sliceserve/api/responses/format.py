"""How /v1/responses words its answers."""

import itertools
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from msgspec import structs

from sliceserve.api.answering import Chunks, Job
from sliceserve.api.backend import Backend
from sliceserve.api.conversation import AnswerReader, ChatPrompt
from sliceserve.api.errors import ApiError, as_api_error
from sliceserve.api.event_stream import encode_event
from sliceserve.api.logprobs import chat_logprobs
from sliceserve.api.protocol import ResponsesRequest
from sliceserve.api.protocol.parts import Part
from sliceserve.api.protocol.responses import FunctionTool
from sliceserve.api.replies import Usage
from sliceserve.api.responses.output import Output
from sliceserve.api.responses.replies import (
    Completed,
    Created,
    Event,
    Failed,
    Incomplete,
    IncompleteDetails,
    InProgress,
    InputTokensDetails,
    ResponseError,
    ResponseLogprob,
    ResponseReply,
    ResponseTopLogprob,
    ResponseUsage,
    TextEcho,
)
from sliceserve.engine.generation import TextChunk


class ResponseFormat:
    """``Format`` of responses. A stream ends with the event that has the whole response."""

    def __init__(self, request: ResponsesRequest, prompt: ChatPrompt, backend: Backend) -> None:
        self._tokenizer = backend.tokenizer
        self._reader = AnswerReader(prompt)
        self._response = _begun(request)
        self._output = Output()
        # Of tokens whose text has not come yet.
        self._logprobs: list[ResponseLogprob] = []
        self._is_cut = False

    async def events(self, job: Job, chunks: Chunks) -> AsyncIterator[bytes]:
        numbers = itertools.count()
        try:
            for event in (Created(response=self._response), InProgress(response=self._response)):
                yield _encode(event, next(numbers))
            async for _, chunk in chunks:
                for event in self._take(chunk):
                    yield _encode(event, next(numbers))
            for event in self._end(job.usage):
                yield _encode(event, next(numbers))
        except Exception as error:
            yield _encode(self._fail(as_api_error(error)), next(numbers))

    def whole(self, answers: list[list[TextChunk]], usage: Usage) -> ResponseReply:
        (chunks,) = answers
        for chunk in chunks:
            for _ in self._take(chunk):
                pass
        for _ in self._end(usage):
            pass
        return self._response

    def _take(self, chunk: TextChunk) -> Iterator[Event]:
        self._logprobs += self._logprobs_of(chunk)
        self._is_cut = chunk.finish_reason == "length"
        for news in self._reader.read(chunk):
            if isinstance(news, str):
                yield from self._say(news)
                continue
            if news.id is not None:
                yield from self._output.call(news.id, news.name or "")
            if news.arguments:
                yield from self._output.arguments(news.arguments)
        # Calls have no logprobs in this API.
        if chunk.finish_reason is not None and self._logprobs and not self._output.has_calls:
            yield from self._say("")

    def _say(self, text: str) -> Iterator[Event]:
        logprobs, self._logprobs = self._logprobs, []
        yield from self._output.text(text, logprobs)

    def _end(self, usage: Usage) -> Iterator[Event]:
        yield from self._output.end("incomplete" if self._is_cut else "completed")
        ended = structs.replace(
            self._response,
            status="incomplete" if self._is_cut else "completed",
            completed_at=None if self._is_cut else int(time.time()),
            incomplete_details=IncompleteDetails("max_output_tokens") if self._is_cut else None,
            output=self._output.items,
            usage=_usage(usage),
        )
        self._response = ended
        yield Incomplete(response=ended) if self._is_cut else Completed(response=ended)

    def _fail(self, error: ApiError) -> Event:
        code = {429: "rate_limit_exceeded", 400: "invalid_prompt"}.get(error.status_code)
        failed = structs.replace(
            self._response,
            status="failed",
            error=ResponseError(code or "server_error", error.detail),  # type: ignore[arg-type]
            output=self._output.items,
        )
        return Failed(response=failed)

    def _logprobs_of(self, chunk: TextChunk) -> list[ResponseLogprob]:
        found = chat_logprobs([chunk], self._tokenizer)
        return [
            ResponseLogprob(
                token.token,
                token.logprob,
                token.bytes or [],
                [
                    ResponseTopLogprob(top.token, top.logprob, top.bytes or [])
                    for top in token.top_logprobs
                ],
            )
            for token in (found.content if found is not None else ())
        ]


def _begun(request: ResponsesRequest) -> ResponseReply:
    choice = request.tool_choice
    return ResponseReply(
        id=f"resp_{secrets.token_hex(16)}",
        created_at=int(time.time()),
        status="in_progress",
        model=request.model,
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        max_tool_calls=request.max_tool_calls,
        metadata=request.metadata or {},
        parallel_tool_calls=request.parallel_tool_calls is not False,
        prompt_cache_key=request.prompt_cache_key,
        safety_identifier=request.safety_identifier,
        temperature=1.0 if request.temperature is None else request.temperature,
        text=TextEcho(_text_format(request)),
        tool_choice=choice.model_dump() if isinstance(choice, Part) else choice or "auto",
        tools=[_described(tool) for tool in request.tools or ()],
        top_logprobs=request.top_logprobs or 0,
        top_p=1.0 if request.top_p is None else request.top_p,
        user=request.user,
    )


def _text_format(request: ResponsesRequest) -> dict[str, Any]:
    if request.text is None or request.text.format is None:
        return {"type": "text"}
    return request.text.format.model_dump(by_alias=True, exclude_none=True)


def _described(tool: FunctionTool) -> dict[str, Any]:
    """Its parameters and strictness are told even where they were left out."""
    return {"parameters": None, "strict": None, **tool.model_dump(exclude_none=True)}


def _usage(usage: Usage) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
    )


def _encode(event: Event, number: int) -> bytes:
    name = str(event.__struct_config__.tag)
    return encode_event(structs.replace(event, sequence_number=number), name)
