"""What can run a workload: the whole model, the split one, and transformers."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import fields, replace
from typing import Any, Protocol

from sliceserve.cli.bench.options import BackendName
from sliceserve.cli.bench.timeline import Timeline
from sliceserve.cli.bench.workload import OnToken, run_requests
from sliceserve.cli.local_server import LocalServer, local_server
from sliceserve.client.sdk import AsyncSplitLLM
from sliceserve.client.stats import RequestStats
from sliceserve.codec.base import Codec
from sliceserve.codec.registry import build_codec
from sliceserve.configs import CacheConfig, ClientConfig, EngineConfig, SamplingParams
from sliceserve.engine.build import pick_device, pick_dtype
from sliceserve.engine.generation import Generator, ThinGenerator
from sliceserve.engine.process import EngineProcess
from sliceserve.engine.profiles import encoder_for_profile
from sliceserve.models.resolve import resolve_model

# Prompts come again, in every turn and for every client of a replay: what is measured is the work.
NO_PREFIXES = CacheConfig(prefix_cache=False)


class Backend(Protocol):
    """A loaded model."""

    @property
    def name(self) -> str: ...

    async def run(
        self,
        prompts: Sequence[list[int]],
        sampling: SamplingParams,
        concurrency: int,
        on_token: OnToken,
    ) -> list[Timeline]:
        """Answer all prompts, ``concurrency`` at a time; ``on_token`` is called for each token."""
        ...


class GeneratorBackend:
    """An engine behind ``Generator``."""

    def __init__(self, name: str, generator: Generator) -> None:
        self.name = name
        self._generator = generator

    async def run(
        self,
        prompts: Sequence[list[int]],
        sampling: SamplingParams,
        concurrency: int,
        on_token: OnToken,
    ) -> list[Timeline]:
        return await run_requests(self._generator, prompts, sampling, concurrency, on_token)


class SplitBackend(GeneratorBackend):
    """The first layers in this process, the others behind a socket."""

    def __init__(self, llm: AsyncSplitLLM) -> None:
        super().__init__(BackendName.SPLIT.value, llm.generator)
        self.split = llm.split
        self.codec = llm.codec
        self.hidden_size = llm.stats.hidden_size
        self._llm = llm

    def encoder(self, config: ClientConfig) -> Codec:
        """Of its head; ``config`` is the one that it was made by."""
        profile = self._llm.generator.welcome.profile
        if profile is None:
            return build_codec(config.codec, self.hidden_size)
        path = resolve_model(config.model.model, config.model.trust_remote_code)
        return encoder_for_profile(path, self.split, profile, config.codec)

    @property
    def stats(self) -> RequestStats:
        """All requests so far."""
        return self._llm.stats.total


class TransformersBackend:
    """``generate`` of transformers over batches of ``concurrency`` prompts, with its KV cache."""

    name = BackendName.TRANSFORMERS.value

    def __init__(self, config: ClientConfig) -> None:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        path = resolve_model(config.model.model, config.model.trust_remote_code)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=pick_dtype(config.model))
        self._model: Any = model.to(pick_device(config.model)).eval()

    async def run(
        self,
        prompts: Sequence[list[int]],
        sampling: SamplingParams,
        concurrency: int,
        on_token: OnToken,
    ) -> list[Timeline]:
        timelines: list[Timeline] = []
        for i in range(0, len(prompts), concurrency):
            batch = prompts[i : i + concurrency]
            timelines += await asyncio.to_thread(self._generate, batch, sampling, on_token)
        return timelines

    def _generate(
        self, prompts: Sequence[list[int]], sampling: SamplingParams, on_token: OnToken
    ) -> list[Timeline]:
        import torch

        input_ids = torch.tensor(prompts, device=self._model.device)  # (B, input_len)
        steps = _Steps(len(prompts), on_token)
        self._model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            min_new_tokens=sampling.max_tokens,
            max_new_tokens=sampling.max_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
            streamer=steps,
        )
        return [replace(steps.timeline) for _ in prompts]


class _Steps:
    """A streamer of transformers: ``put`` is called with the prompts, then once a step."""

    def __init__(self, batch_size: int, on_token: OnToken) -> None:
        self.timeline = Timeline(time.perf_counter())
        self._batch_size = batch_size
        self._on_token = on_token
        self._prompts_seen = False

    def put(self, token_ids: Any) -> None:
        if not self._prompts_seen:
            self._prompts_seen = True
            return
        self.timeline.tokens.append(time.perf_counter())
        for _ in range(self._batch_size):
            self._on_token()

    def end(self) -> None:
        pass


def open_backend(name: BackendName, config: ClientConfig) -> "AbstractAsyncContextManager[Backend]":
    """Load the model of ``config``; leaving the context frees it, and ends what was started.

    Raises ModelError, EngineDead and LocalServerError.
    """
    openers: dict[BackendName, Callable[[ClientConfig], AbstractAsyncContextManager[Backend]]] = {
        BackendName.WHOLE: _open_whole,
        BackendName.SPLIT: open_split,
        BackendName.TRANSFORMERS: _open_transformers,
    }
    return openers[name](config)


@asynccontextmanager
async def _open_whole(config: ClientConfig) -> AsyncIterator[GeneratorBackend]:
    # As a server runs it. In a thread here it would share OpenMP with the other backends, whose
    # waiting threads sleep at once when there are more of them than processors.
    engine = EngineProcess(EngineConfig(model=config.model, cache=NO_PREFIXES))
    try:
        await engine.start()
        yield GeneratorBackend(BackendName.WHOLE.value, ThinGenerator(engine))
    finally:
        await engine.stop()


@asynccontextmanager
async def open_split(config: ClientConfig) -> AsyncIterator[SplitBackend]:
    """``config.server`` is ignored: the server is one of our own."""
    cuts = () if config.split is None else (config.split,)
    with own_server(config, cuts) as server:
        config = replace(config, prefix_cache=False)
        llm = AsyncSplitLLM(server.url, api_key=server.api_key, config=config)
        try:
            await llm.start()
            yield SplitBackend(llm)
        finally:
            await llm.close()


@asynccontextmanager
async def _open_transformers(config: ClientConfig) -> AsyncIterator[TransformersBackend]:
    yield await asyncio.to_thread(TransformersBackend, config)


@contextmanager
def own_server(
    config: ClientConfig, cuts: Sequence[int], options: Sequence[str] = ()
) -> Iterator[LocalServer]:
    """A server process for the model of ``config``, with these cuts if any are named, and without a
    prefix cache unless ``options`` turn it on."""
    model = config.model
    arguments = ["--model", model.model, "--dtype", model.dtype, "--device", model.device]
    arguments.append("--no-prefix-cache")
    if cuts:
        arguments += ["--cuts", ",".join(map(str, cuts))]
    with local_server([*arguments, *options]) as server:
        yield server


def stats_between(before: RequestStats, after: RequestStats) -> RequestStats:
    """What was counted from one moment to another."""
    return RequestStats(
        **{one.name: getattr(after, one.name) - getattr(before, one.name) for one in fields(after)}
    )
