"""POST /v1/chat/completions."""

import secrets
import time
from collections.abc import Iterable
from typing import Any

from fastapi import Request
from msgspec import UNSET, structs
from starlette.responses import Response

from sliceserve.api.answering import answer
from sliceserve.api.backend import Backend
from sliceserve.api.conversation import AnswerReader, ChatPrompt, plan_chat
from sliceserve.api.logprobs import chat_logprobs, prompt_logprobs
from sliceserve.api.metrics import Metrics
from sliceserve.api.protocol import ChatCompletionRequest
from sliceserve.api.replies import (
    CalledFunction,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    Delta,
    Message,
    Reply,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from sliceserve.api.streaming import ChunkFormat, is_visible
from sliceserve.api.tool_parsing import CallDelta
from sliceserve.engine.generation import TextChunk


async def create_chat_completion(
    http: Request, request: ChatCompletionRequest, backend: Backend, metrics: Metrics
) -> Response:
    """Answer a conversation. Raises ApiError."""
    backend.expect_to_generate(request)
    prompt, job = await plan_chat(http, request, request, backend)
    form = _ChatFormat(request, prompt, backend)
    return await answer(http, job, form, backend, metrics)


class _ChatFormat(ChunkFormat):
    """``Format`` of chat completions: messages whole, deltas in chunks."""

    def __init__(
        self, request: ChatCompletionRequest, prompt: ChatPrompt, backend: Backend
    ) -> None:
        self._tokenizer = backend.tokenizer
        self._num_scores = request.prompt_logprobs
        self._as_ids = bool(request.return_tokens_as_token_ids)
        self._readers = [AnswerReader(prompt) for _ in range(request.num_choices)]
        self._answer: dict[str, Any] = {
            "id": f"chatcmpl-{secrets.token_hex(16)}",
            "created": int(time.time()),
            "model": request.model,
            "system_fingerprint": f"fp_{backend.fingerprint[:10]}",
        }
        self._empty_chunk = ChatCompletionChunk(**self._answer, choices=[])

    def beginning(self, index: int) -> Reply | None:
        delta = Delta(role="assistant", content="", refusal=None)
        return structs.replace(
            self._empty_chunk, choices=[ChatChunkChoice(index=index, delta=delta)]
        )

    def deltas(self, index: int, chunk: TextChunk) -> Iterable[Reply]:
        if not is_visible(chunk):
            return
        reader = self._readers[index]
        news = reader.read(chunk)
        logprobs = chat_logprobs([chunk], self._tokenizer, self._as_ids)
        reason = reader.finish_reason(chunk)
        if not news and logprobs is None and reason is None:
            return
        choices = [ChatChunkChoice(index=index, delta=_delta(one)) for one in news or [""]]
        choices[0] = structs.replace(choices[0], logprobs=logprobs)
        choices[-1] = structs.replace(choices[-1], finish_reason=reason)
        for choice in choices:
            yield structs.replace(self._empty_chunk, choices=[choice])

    def usage(self, usage: Usage) -> Reply:
        return structs.replace(self._empty_chunk, usage=usage)

    def whole(self, answers: list[list[TextChunk]], usage: Usage) -> Reply:
        choices = [self._choice(index, chunks) for index, chunks in enumerate(answers)]
        reply = ChatCompletion(**self._answer, choices=choices, usage=usage)
        if self._num_scores is None:
            return reply
        # All answers are to one prompt.
        scores = prompt_logprobs(answers[0][0].prompt_logprobs, self._num_scores, self._tokenizer)
        return structs.replace(reply, prompt_logprobs=scores)

    def _choice(self, index: int, chunks: list[TextChunk]) -> ChatChoice:
        reader = self._readers[index]
        content, calls = reader.read_all(chunks)
        made = [
            ToolCall(id=call.id, function=CalledFunction(name=call.name, arguments=call.arguments))
            for call in calls
        ]
        return ChatChoice(
            index=index,
            message=Message(
                content=None if made and not content else content, tool_calls=made or UNSET
            ),
            logprobs=chat_logprobs(chunks, self._tokenizer, self._as_ids),
            finish_reason=reader.finish_reason(chunks[-1]),
        )


def _delta(news: str | CallDelta) -> Delta:
    if isinstance(news, str):
        return Delta(content=news) if news else Delta()
    if news.id is None or news.name is None:
        function = CalledFunction(arguments=news.arguments)
        return Delta(tool_calls=[ToolCallDelta(index=news.index, function=function)])
    function = CalledFunction(name=news.name, arguments=news.arguments)
    call = ToolCallDelta(index=news.index, id=news.id, type="function", function=function)
    return Delta(tool_calls=[call])
