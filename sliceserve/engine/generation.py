"""Tokens and text of one request, whoever computes the layers.

The OpenAI endpoint and the SDK are written against ``Generator``; a server that holds every layer,
and a split client, are two of them.
"""

import secrets
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from sliceserve.configs import SamplingParams
from sliceserve.engine.client import EngineClient
from sliceserve.engine.messages import Cancel, Open, TokenTimes
from sliceserve.models.text import TextStream
from sliceserve.models.tokenizer import Tokenizer
from sliceserve.scheduler.plan import FinishReason, PromptLogprob, SampledToken


class GenerationError(RuntimeError):
    """A request that was refused or failed. ``code`` is for programs ("context_length_exceeded",
    "overloaded", "server_unreachable", …); ``retry_after_s`` is set when another try may succeed.
    """

    def __init__(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Generated:
    """One sampled token; ``finish_reason`` is set on the last. ``num_cached``: how many of the
    prompt's positions were found in a prefix cache. ``times``: what it took, where the whole model
    runs in one engine. ``prompt_logprobs``, on the first token, are
    those of the prompt's tokens but the first, if they were asked for."""

    token: SampledToken
    finish_reason: FinishReason | None = None
    num_cached: int = 0
    prompt_logprobs: Sequence[PromptLogprob] = ()
    times: TokenTimes | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose account a request runs, and how urgent it is among theirs: lower goes first, where
    the policy looks at it. ``trace_parent`` is the W3C traceparent of whoever traces it, or ""."""

    tenant: str = ""
    priority: int = 0
    trace_parent: str = ""


NOBODY = Caller()


class Generator(Protocol):
    """Makes tokens for prompts, many at once."""

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and answer together."""
        ...

    def generate(
        self, prompt: Sequence[int], sampling: SamplingParams, caller: Caller = NOBODY
    ) -> AsyncGenerator[Generated, None]:
        """Yield tokens as they are sampled. Closing the generator cancels the request. Raises
        GenerationError."""
        ...


class ThinGenerator:
    """Every layer runs in one engine."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine
        # Other processes may have generators over the same engine.
        self._name = f"thin-{secrets.token_hex(8)}"
        self._num_opened = 0

    @property
    def max_model_len(self) -> int:
        return self._engine.info.max_model_len

    async def generate(
        self, prompt: Sequence[int], sampling: SamplingParams, caller: Caller = NOBODY
    ) -> AsyncGenerator[Generated, None]:
        self._num_opened += 1
        request_id = f"{self._name}-{self._num_opened}"
        request = Open(
            request_id=request_id,
            num_prompt=len(prompt),
            prompt=list(prompt),
            sampling=sampling,
            tenant=caller.tenant,
            priority=caller.priority,
        )
        finished = False
        scores: list[PromptLogprob] = []
        try:
            async for output in self._engine.open(request):
                scores += output.prompt_logprobs
                finished = output.finish_reason is not None
                if output.finish_reason == "error":
                    raise GenerationError(
                        output.error_code or "internal_error",
                        output.error or "the engine gave up this request",
                        output.retry_after_s,
                    )
                for i, token in enumerate(output.tokens):
                    is_last = i == len(output.tokens) - 1
                    reason = output.finish_reason if is_last else None
                    yield Generated(token, reason, output.num_cached, scores, output.times)
                    scores = []
        finally:
            if not finished:
                self._engine.send(Cancel(request_id))


@dataclass(frozen=True, slots=True)
class TextChunk:
    """A piece of the answer. ``text`` may be empty while a character or a possible stop string is
    incomplete; ``finish_reason`` is set on the last chunk, whose token may be None. ``offset``:
    characters of the answer that the tokens before this one have made, shown or not.
    ``num_cached``, ``prompt_logprobs`` and ``times`` as in ``Generated``."""

    text: str
    token: SampledToken | None
    finish_reason: FinishReason | None = None
    offset: int = 0
    num_cached: int = 0
    prompt_logprobs: Sequence[PromptLogprob] = ()
    times: TokenTimes | None = None


async def stream_text(
    generator: Generator,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    sampling: SamplingParams,
    stop: Sequence[str] = (),
    caller: Caller = NOBODY,
    *,
    include_stop: bool = False,
    skip_special_tokens: bool = True,
) -> AsyncGenerator[TextChunk, None]:
    """Text of the answer, piece by piece, ended before the first of the ``stop`` strings that is
    not in the text of its first ``min_tokens`` tokens.

    One chunk a token. The text of what ended the answer, a string or a token, is a part of it with
    ``include_stop`` alone; special tokens have text unless ``skip_special_tokens``. Raises
    GenerationError.
    """
    text = TextStream(
        tokenizer,
        stop,
        include_stop=include_stop,
        skip_special_tokens=skip_special_tokens,
        min_tokens=sampling.min_tokens,
    )
    tokens = generator.generate(prompt, sampling, caller)
    try:
        async for step in tokens:
            offset, reason = text.num_characters, step.finish_reason
            piece = ""
            if reason != "stop" or include_stop:
                piece = text.push(step.token.token_id)
            if text.stopped:
                reason = "stop"
            elif reason is not None:
                piece += text.finish()
            yield TextChunk(
                piece,
                step.token,
                reason,
                offset,
                step.num_cached,
                step.prompt_logprobs,
                step.times,
            )
            if reason is not None:
                return
    finally:
        await tokens.aclose()
