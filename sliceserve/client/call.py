"""One call of the SDK: what its prompts have in common, and what becomes of each."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import cast

from sliceserve.client.completion import Completion
from sliceserve.client.line import cancel_and_wait
from sliceserve.client.session import SplitSession
from sliceserve.client.stats import RequestStats
from sliceserve.configs import SamplingParams
from sliceserve.engine.generation import NOBODY, Caller, Generated, TextChunk, stream_text
from sliceserve.models.tokenizer import Tokenizer
from sliceserve.scheduler.plan import FinishReason


@dataclass(frozen=True, slots=True)
class Call:
    """How prompts are to be answered, and by whom. ``deadline`` is the `time.monotonic` by which
    all must have been; None waits."""

    session: SplitSession
    tokenizer: Tokenizer
    sampling: SamplingParams
    stop: Sequence[str]
    priority: int
    deadline: float | None

    def stream(
        self, ids: list[int], stats: RequestStats | None = None
    ) -> AsyncGenerator[TextChunk, None]:
        """The answer to one prompt, piece by piece. ``stats`` as in `SplitSession.generate`."""
        counted = _Counted(self.session, stats, self.deadline)
        caller = Caller(priority=self.priority)
        return stream_text(counted, self.tokenizer, ids, self.sampling, self.stop, caller)

    async def complete(self, ids: list[int]) -> Completion:
        """The whole answer to one prompt."""
        stats = RequestStats()
        chunks = [chunk async for chunk in self.stream(ids, stats)]
        tokens = tuple(chunk.token for chunk in chunks if chunk.token is not None)
        return Completion(
            text="".join(chunk.text for chunk in chunks),
            token_ids=tuple(token.token_id for token in tokens),
            finish_reason=cast(FinishReason, chunks[-1].finish_reason),
            num_prompt_tokens=len(ids),
            stats=stats,
            logprobs=None if self.sampling.logprobs is None else tokens,
            prompt_logprobs=(
                None
                if self.sampling.prompt_logprobs is None
                else (None, *chunks[0].prompt_logprobs)
            ),
        )

    async def complete_all(self, prompts: list[list[int]]) -> list[Completion]:
        """The answers to all prompts, at once as far as the server lets them, and in order."""
        places = asyncio.Semaphore(self.session.welcome.max_requests)

        async def complete(ids: list[int]) -> Completion:
            async with places:
                return await self.complete(ids)

        tasks = [asyncio.create_task(complete(ids)) for ids in prompts]
        try:
            return await asyncio.gather(*tasks)
        finally:
            await cancel_and_wait(*tasks)


class _Counted:
    """A ``Generator`` that keeps the counts of its request, and ends it in time."""

    def __init__(
        self, session: SplitSession, stats: RequestStats | None, deadline: float | None
    ) -> None:
        self._session = session
        self._stats = stats
        self._deadline = deadline

    @property
    def max_model_len(self) -> int:
        return self._session.max_model_len

    def generate(
        self, prompt: Sequence[int], sampling: SamplingParams, caller: Caller = NOBODY
    ) -> AsyncGenerator[Generated, None]:
        left = None if self._deadline is None else self._deadline - time.monotonic()
        return self._session.generate(prompt, sampling, caller, self._stats, left)
