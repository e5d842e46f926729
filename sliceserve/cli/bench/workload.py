"""What is asked of whatever is measured: random prompts, answers of a fixed length."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from sliceserve.cli.bench.timeline import Timeline
from sliceserve.client.line import cancel_and_wait
from sliceserve.configs import ClientConfig, SamplingParams
from sliceserve.engine.generation import Generated, Generator
from sliceserve.models.resolve import resolve_model
from sliceserve.models.spec import ModelSpec

OnToken = Callable[[], None]

_WARM_UP_TOKENS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """``num_prompts`` prompts of exactly ``input_len`` random token ids, each answered with exactly
    ``output_len`` greedy tokens. A prompt depends on the seed and its own number alone."""

    num_prompts: int
    input_len: int
    output_len: int
    seed: int = 0

    @property
    def num_output_tokens(self) -> int:
        return self.num_prompts * self.output_len

    @property
    def num_tokens(self) -> int:
        return self.num_prompts * (self.input_len + self.output_len)

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(max_tokens=self.output_len, ignore_eos=True)

    def prompts(self, vocab_size: int) -> list[list[int]]:
        return [
            random.Random(f"{self.seed} {i}").choices(range(vocab_size), k=self.input_len)
            for i in range(self.num_prompts)
        ]

    def warm_up(self, concurrency: int) -> "Workload":
        """Other prompts, as many as run at once, and short answers."""
        return replace(
            self,
            num_prompts=min(self.num_prompts, concurrency),
            output_len=min(self.output_len, _WARM_UP_TOKENS),
            seed=self.seed + 1,
        )


async def time_request(
    tokens: AsyncGenerator[Generated, None], on_token: OnToken, timeline: Timeline
) -> list[int]:
    """Note in ``timeline`` when each token comes, and return the tokens. Raises what the generator
    raises; the times of the tokens before are then there."""
    token_ids = []
    async with aclosing(tokens):
        async for step in tokens:
            timeline.tokens.append(time.perf_counter())
            token_ids.append(step.token.token_id)
            on_token()
    return token_ids


async def run_requests(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    concurrency: int,
    on_token: OnToken,
) -> list[Timeline]:
    """Answer all prompts, ``concurrency`` at a time. Raises GenerationError of the first that
    fails; the others end."""
    waiting = iter(prompts)
    timelines: list[Timeline] = []

    async def answer() -> None:
        for prompt in waiting:
            timeline = Timeline(time.perf_counter())
            timelines.append(timeline)
            await time_request(generator.generate(prompt, sampling), on_token, timeline)

    tasks = [asyncio.create_task(answer()) for _ in range(min(concurrency, len(prompts)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        await cancel_and_wait(*tasks)
    return timelines


def vocab_size(config: ClientConfig) -> int:
    """Of the model; raises ModelError."""
    path = resolve_model(config.model.model, config.model.trust_remote_code)
    return ModelSpec.load(path).vocab_size
