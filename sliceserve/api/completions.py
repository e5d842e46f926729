"""POST /v1/completions."""

import asyncio
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

from fastapi import Request
from msgspec import structs
from starlette.responses import Response

from sliceserve.api.answering import answer, plan_job
from sliceserve.api.backend import Backend
from sliceserve.api.errors import invalid
from sliceserve.api.logprobs import completion_logprobs
from sliceserve.api.metrics import Metrics
from sliceserve.api.protocol import CompletionRequest
from sliceserve.api.replies import CompletionChoice, Reply, Usage
from sliceserve.api.streaming import ChunkFormat, is_visible
from sliceserve.api.tokenization import expect_known
from sliceserve.engine.generation import TextChunk
from sliceserve.models.tokenizer import Tokenizer


async def create_completion(
    http: Request, request: CompletionRequest, backend: Backend, metrics: Metrics
) -> Response:
    """Complete one or several prompts. Raises ApiError."""
    backend.expect_model(request.model)
    backend.expect_generator()
    if not request.prompts:
        raise invalid("the list of prompts is empty", "prompt")
    prompts = await asyncio.to_thread(_token_ids, request.prompts, backend.tokenizer)
    job = plan_job(http, request, prompts, backend)
    return await answer(http, job, _CompletionFormat(request.model, backend), backend, metrics)


def _token_ids(prompts: Sequence[str | list[int]], tokenizer: Tokenizer) -> list[list[int]]:
    encoded = []
    for prompt in prompts:
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        expect_known(ids, tokenizer, "prompt")
        encoded.append(ids)
    return encoded


class _CompletionFormat(ChunkFormat):
    """``Format`` of text completions; chunks and whole answers look alike."""

    def __init__(self, model: str, backend: Backend) -> None:
        self._tokenizer = backend.tokenizer
        self._empty = Reply(
            id=f"cmpl-{secrets.token_hex(16)}",
            object="text_completion",
            created=int(time.time()),
            model=model,
            system_fingerprint=f"fp_{backend.fingerprint[:10]}",
            choices=[],
        )
        # Characters of each answer sent so far.
        self._num_sent: dict[int, int] = defaultdict(int)

    def beginning(self, index: int) -> Reply | None:
        return None

    def deltas(self, index: int, chunk: TextChunk) -> Iterable[Reply]:
        if is_visible(chunk):
            yield structs.replace(self._empty, choices=[self._choice(index, [chunk])])

    def usage(self, usage: Usage) -> Reply:
        return structs.replace(self._empty, usage=usage)

    def whole(self, answers: list[list[TextChunk]], usage: Usage) -> Reply:
        choices = [self._choice(index, chunks) for index, chunks in enumerate(answers)]
        return structs.replace(self._empty, choices=choices, usage=usage)

    def _choice(self, index: int, chunks: list[TextChunk]) -> CompletionChoice:
        text = "".join(chunk.text for chunk in chunks)
        logprobs = completion_logprobs(chunks, self._tokenizer, self._num_sent[index])
        self._num_sent[index] += len(text)
        return CompletionChoice(
            index=index,
            text=text,
            logprobs=logprobs,
            finish_reason=chunks[-1].finish_reason,
        )
