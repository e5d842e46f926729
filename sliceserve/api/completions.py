"""POST /v1/completions."""

import asyncio
import secrets
import time
from collections.abc import Iterable, Sequence
from statistics import fmean

from fastapi import Request
from msgspec import UNSET, structs
from starlette.responses import Response

from sliceserve.api.answering import answer, plan_job
from sliceserve.api.backend import Backend
from sliceserve.api.echo import Echo, echo_ids, echo_text
from sliceserve.api.errors import invalid
from sliceserve.api.guiding import wanted_guide
from sliceserve.api.logprobs import TokenNames, completion_logprobs, prompt_logprobs
from sliceserve.api.metrics import Metrics
from sliceserve.api.protocol import CompletionRequest
from sliceserve.api.replies import Completion, CompletionChoice, Reply, Usage
from sliceserve.api.streaming import ChunkFormat, is_visible
from sliceserve.api.tokenization import expect_known
from sliceserve.engine.generation import TextChunk
from sliceserve.models.tokenizer import Tokenizer


async def create_completion(
    http: Request, request: CompletionRequest, backend: Backend, metrics: Metrics
) -> Response:
    """Complete one or several prompts. Raises ApiError."""
    backend.expect_to_generate(request)
    if not request.prompts:
        raise invalid("the list of prompts is empty", "prompt")
    prompts = await asyncio.to_thread(_read_prompts, request, backend.tokenizer)
    token_ids = [list(prompt.token_ids) for prompt in prompts]
    guide = await wanted_guide(request)
    job = plan_job(http, request, token_ids, backend, guide=guide)
    form = _CompletionFormat(request, prompts, backend)
    return await answer(http, job, form, backend, metrics)


def _read_prompts(request: CompletionRequest, tokenizer: Tokenizer) -> list[Echo]:
    return [_read_prompt(prompt, request, tokenizer) for prompt in request.prompts]


def _read_prompt(
    prompt: str | list[int] | None, request: CompletionRequest, tokenizer: Tokenizer
) -> Echo:
    """Text and places are those of the echo, if there will be one."""
    if isinstance(prompt, str):
        if request.echo:
            return echo_text(prompt, tokenizer, request.add_special_tokens)
        return Echo("", tokenizer.encode(prompt, request.add_special_tokens), ())
    if prompt is None:
        prompt = list(tokenizer.eos_token_ids[:1])
    expect_known(prompt, tokenizer, "prompt")
    return echo_ids(prompt, tokenizer) if request.echo else Echo("", prompt, ())


class _CompletionFormat(ChunkFormat):
    """``Format`` of text completions; chunks and whole answers look alike."""

    def __init__(
        self, request: CompletionRequest, prompts: Sequence[Echo], backend: Backend
    ) -> None:
        self._request = request
        self._prompts = prompts
        self._tokenizer = backend.tokenizer
        self._names = TokenNames(backend.tokenizer, bool(request.return_tokens_as_token_ids))
        self._empty = Completion(
            id=f"cmpl-{secrets.token_hex(16)}",
            created=int(time.time()),
            model=request.model,
            system_fingerprint=f"fp_{backend.fingerprint[:10]}",
            choices=[],
        )
        # Answers of which something has been told.
        self._begun: set[int] = set()

    def beginning(self, index: int) -> Reply | None:
        return None

    def deltas(self, index: int, chunk: TextChunk) -> Iterable[Reply]:
        if is_visible(chunk):
            yield structs.replace(self._empty, choices=[self._choice(index, [chunk])])

    def usage(self, usage: Usage) -> Reply:
        return structs.replace(self._empty, usage=usage)

    def whole(self, answers: list[list[TextChunk]], usage: Usage) -> Reply:
        size = self._request.num_choices
        groups = [answers[start : start + size] for start in range(0, len(answers), size)]
        told = [chunks for group in groups for chunks in _best(group, self._request.num_told)]
        choices = [self._choice(index, chunks) for index, chunks in enumerate(told)]
        return structs.replace(self._empty, choices=choices, usage=usage)

    def _choice(self, index: int, chunks: list[TextChunk]) -> CompletionChoice:
        request = self._request
        prompt = self._prompts[index // request.num_told]
        echo = prompt if request.echo and index not in self._begun else None
        self._begun.add(index)
        text = "".join(chunk.text for chunk in chunks)
        logprobs = None
        if request.logprobs is not None:
            num_before = len(prompt.text) if request.echo else 0
            logprobs = completion_logprobs(echo, chunks, num_before, request.logprobs, self._names)
        scores = request.prompt_logprobs
        return CompletionChoice(
            index=index,
            text=text if echo is None else echo.text + text,
            logprobs=logprobs,
            finish_reason=chunks[-1].finish_reason,
            prompt_logprobs=UNSET
            if scores is None
            else prompt_logprobs(chunks[0].prompt_logprobs, scores, self._tokenizer),
        )


def _best(answers: list[list[TextChunk]], num_told: int) -> list[list[TextChunk]]:
    """Those whose tokens are likeliest on average, the best first; all, as they are, if no choice
    is to be made."""
    if len(answers) == num_told:
        return answers
    return sorted(answers, key=_mean_logprob, reverse=True)[:num_told]


def _mean_logprob(chunks: list[TextChunk]) -> float:
    return fmean([chunk.token.logprob or 0.0 for chunk in chunks if chunk.token] or [0.0])
