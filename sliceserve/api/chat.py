"""POST /v1/chat/completions."""

import asyncio
import secrets
import time
from typing import Any

from fastapi import Request
from msgspec import structs
from starlette.responses import Response

from sliceserve.api.answering import answer, plan_job
from sliceserve.api.backend import Backend
from sliceserve.api.errors import invalid
from sliceserve.api.logprobs import chat_logprobs
from sliceserve.api.metrics import Metrics
from sliceserve.api.protocol import ChatCompletionRequest, ChatMessage
from sliceserve.api.replies import ChatChoice, ChatChunkChoice, Delta, Message, Reply, Usage
from sliceserve.api.streaming import ChunkFormat
from sliceserve.engine.generation import TextChunk
from sliceserve.models.errors import ModelError


async def create_chat_completion(
    http: Request, request: ChatCompletionRequest, backend: Backend, metrics: Metrics
) -> Response:
    """Answer a conversation. Raises ApiError."""
    backend.expect_model(request.model)
    backend.expect_generator()
    turns = [template_turn(message) for message in request.messages]
    try:
        prompt = await asyncio.to_thread(backend.tokenizer.chat_prompt, turns)
    except ModelError as error:
        raise invalid(str(error), "messages") from error
    job = plan_job(http, request, [prompt], backend)
    return await answer(http, job, _ChatFormat(request.model, backend), backend, metrics)


def template_turn(message: ChatMessage) -> dict[str, Any]:
    """A message as chat templates know it; to them a developer is the system."""
    turn = message.model_dump(include={"name", "tool_call_id"}, exclude_none=True)
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": message.text, **turn}


class _ChatFormat(ChunkFormat):
    """``Format`` of chat completions: messages whole, deltas in chunks."""

    def __init__(self, model: str, backend: Backend) -> None:
        self._tokenizer = backend.tokenizer
        self._empty = Reply(
            id=f"chatcmpl-{secrets.token_hex(16)}",
            object="chat.completion",
            created=int(time.time()),
            model=model,
            system_fingerprint=f"fp_{backend.fingerprint[:10]}",
            choices=[],
        )
        self._empty_chunk = structs.replace(self._empty, object="chat.completion.chunk")

    def beginning(self, index: int) -> Reply | None:
        delta = Delta(role="assistant", content="")
        return structs.replace(
            self._empty_chunk, choices=[ChatChunkChoice(index=index, delta=delta)]
        )

    def delta(self, index: int, chunk: TextChunk) -> Reply:
        choice = ChatChunkChoice(
            index=index,
            delta=Delta(content=chunk.text) if chunk.text else Delta(),
            logprobs=chat_logprobs([chunk], self._tokenizer),
            finish_reason=chunk.finish_reason,
        )
        return structs.replace(self._empty_chunk, choices=[choice])

    def usage(self, usage: Usage) -> Reply:
        return structs.replace(self._empty_chunk, usage=usage)

    def whole(self, answers: list[list[TextChunk]], usage: Usage) -> Reply:
        choices = [
            ChatChoice(
                index=index,
                message=Message(content="".join(chunk.text for chunk in chunks)),
                logprobs=chat_logprobs(chunks, self._tokenizer),
                finish_reason=chunks[-1].finish_reason,
            )
            for index, chunks in enumerate(answers)
        ]
        return structs.replace(self._empty, choices=choices, usage=usage)
