"""The SDK on an event loop. `sliceserve.client.sync` has it without one."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast, overload

from sliceserve.client.completion import Completion
from sliceserve.client.connection import Dial
from sliceserve.client.errors import SplitError
from sliceserve.client.line import cancel_and_wait
from sliceserve.client.profiles import fetch_profile
from sliceserve.client.session import SplitSession
from sliceserve.client.stats import RequestStats, SessionStats
from sliceserve.codec.registry import wire_id
from sliceserve.configs import (
    CacheConfig,
    ClientConfig,
    CodecConfig,
    EngineConfig,
    LayerConfig,
    SamplingParams,
)
from sliceserve.configs.codec import CodecName
from sliceserve.engine.client import EngineClient
from sliceserve.engine.generation import NOBODY, Caller, Generated, TextChunk, stream_text
from sliceserve.engine.in_process import InProcessEngine
from sliceserve.models.resolve import fingerprint, resolve_model
from sliceserve.models.spec import ModelSpec
from sliceserve.models.tokenizer import Tokenizer
from sliceserve.scheduler.plan import FinishReason
from sliceserve.transport.link import Link
from sliceserve.transport.messages import PROTOCOL_VERSION, Hello, Welcome
from sliceserve.transport.websocket import connect

Message = Mapping[str, Any]
# Text, token ids, or a conversation.
Prompt = str | Sequence[int] | Sequence[Message]
Stop = str | Sequence[str]


class AsyncSplitLLM:
    """A model whose first layers run here and whose others run on a server.

    ``server`` is where `sliceserve serve` runs; ``split`` how many layers run here (None: what the
    server suggests), ``codec`` the name or settings of the codec. ``device`` and ``dtype`` are
    those of the layers here. An argument that is None is taken from ``config``. ``dial`` makes
    links in another way than by WebSocket.

    Usable on one event loop, at once (the first call starts it) or with ``async with``, which also
    ends it. Any number of calls may run at a time; they share one connection. Errors are
    SplitError, ModelError for a model that cannot be run, and ValueError for settings.
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        model: str | None = None,
        split: int | None = None,
        codec: str | CodecConfig | None = None,
        api_key: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        timeout_s: float | None = None,
        resume_timeout_s: float | None = None,
        config: ClientConfig | None = None,
        dial: Dial | None = None,
    ) -> None:
        base = config or ClientConfig()
        if isinstance(codec, str):
            codec = replace(base.codec, name=cast(CodecName, codec))
        self._config: ClientConfig = replace(
            base,
            model=replace(base.model, **_given(model=model, device=device, dtype=dtype)),
            **_given(
                server=server,
                split=split,
                codec=codec,
                api_key=api_key,
                timeout_s=timeout_s,
                resume_timeout_s=resume_timeout_s,
            ),
        )
        self._dial = dial
        self._starting = asyncio.Lock()
        self._session: SplitSession | None = None
        self._tokenizer: Tokenizer | None = None
        self._closed = False

    def __repr__(self) -> str:
        name = f"{type(self).__name__}({self._config.model.model!r}, {self._config.server!r}"
        if self._session is None:
            return f"{name}, not started)"
        return f"{name}, layers [0, {self.split}) of {self.num_layers} here, {self.codec}" + (
            ", closed)" if self._closed else ")"
        )

    async def __aenter__(self) -> "AsyncSplitLLM":
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Connect and load the first layers, unless that is done. Raises ConnectionRefused and
        ModelError."""
        async with self._starting:
            if self._closed:
                raise SplitError("this client is closed; make a new one")
            if self._session is not None:
                return
            session = await asyncio.to_thread(make_session, self._config, self._dial)
            await session.start()
            try:
                self._tokenizer = await asyncio.to_thread(
                    Tokenizer.load,
                    Path(session.info.model_path),
                    self._config.model.trust_remote_code,
                )
            except BaseException:
                await session.close()
                raise
            self._session = session

    async def close(self) -> None:
        """End live calls and the connection. May be called twice."""
        async with self._starting:
            self._closed = True
            if self._session is not None:
                await self._session.close()

    @property
    def generator(self) -> SplitSession:
        """Tokens instead of text. Raises SplitError before the start, as all below."""
        if self._session is None:
            raise SplitError("this client has not been started; await start() first")
        return self._session

    @property
    def head(self) -> EngineClient:
        """The engine that runs the first layers."""
        return self.generator.head

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise SplitError("this client has not been started; await start() first")
        return self._tokenizer

    @property
    def stats(self) -> SessionStats:
        return self.generator.stats

    @property
    def num_layers(self) -> int:
        """Layers of the whole model."""
        return self.generator.welcome.num_layers

    @property
    def split(self) -> int:
        """Layers that run here."""
        return self.generator.welcome.cut

    @property
    def codec(self) -> str:
        """Wire id of the codec."""
        return self.generator.welcome.codec

    @overload
    async def generate(
        self,
        prompt: str | list[int],
        sampling: SamplingParams | None = None,
        *,
        stop: Stop = (),
        **params: Any,
    ) -> Completion: ...

    @overload
    async def generate(
        self,
        prompt: list[str],
        sampling: SamplingParams | None = None,
        *,
        stop: Stop = (),
        **params: Any,
    ) -> list[Completion]: ...

    async def generate(
        self,
        prompt: str | list[int] | list[str],
        sampling: SamplingParams | None = None,
        *,
        stop: Stop = (),
        **params: Any,
    ) -> Completion | list[Completion]:
        """Complete a text, token ids, or a list of texts (at the same time, answered in order).

        ``params`` are fields of SamplingParams, and are put over ``sampling``: ``max_tokens``,
        ``temperature``, ``top_p``, ``seed``, …. ``stop`` are strings to end before. Raises
        RequestFailed; of a list, for the first that fails, and the others end.
        """
        await self.start()
        chosen = replace(sampling or SamplingParams(), **params)
        if not _is_list_of(str, prompt):
            ids = self._token_ids(cast("str | list[int]", prompt))
            return await self._complete(ids, chosen, stop)
        prompts = [self.tokenizer.encode(text) for text in cast("list[str]", prompt)]
        return await self._complete_all(prompts, chosen, stop)

    async def chat(
        self,
        messages: str | Sequence[Message],
        sampling: SamplingParams | None = None,
        *,
        stop: Stop = (),
        **params: Any,
    ) -> Completion:
        """Answer a conversation in the model's chat template; a text is a conversation of one
        message. Otherwise as ``generate``. Raises ModelError if the model has no template."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        await self.start()
        chosen = replace(sampling or SamplingParams(), **params)
        return await self._complete(self._token_ids(messages), chosen, stop)

    async def stream(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        *,
        stop: Stop = (),
        **params: Any,
    ) -> AsyncGenerator[TextChunk, None]:
        """The answer piece by piece: a text or token ids are completed, a conversation is
        answered. Otherwise as ``generate``. Closing the generator ends the request."""
        await self.start()
        chosen = replace(sampling or SamplingParams(), **params)
        ids = self._token_ids(prompt)
        chunks = stream_text(self.generator, self.tokenizer, ids, chosen, _strings(stop))
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()

    def _token_ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        if prompt and _is_list_of(Mapping, prompt):
            messages = cast("Sequence[Message]", prompt)
            return self.tokenizer.chat_prompt([dict(message) for message in messages])
        return list(cast("Sequence[int]", prompt))

    async def _complete(self, ids: list[int], sampling: SamplingParams, stop: Stop) -> Completion:
        counted = _Counted(self.generator)
        chunks = [
            chunk
            async for chunk in stream_text(counted, self.tokenizer, ids, sampling, _strings(stop))
        ]
        tokens = tuple(chunk.token for chunk in chunks if chunk.token is not None)
        return Completion(
            text="".join(chunk.text for chunk in chunks),
            token_ids=tuple(token.token_id for token in tokens),
            finish_reason=cast(FinishReason, chunks[-1].finish_reason),
            num_prompt_tokens=len(ids),
            stats=counted.stats,
            logprobs=None if sampling.logprobs is None else tokens,
            prompt_logprobs=(
                None if sampling.prompt_logprobs is None else (None, *chunks[0].prompt_logprobs)
            ),
        )

    async def _complete_all(
        self, prompts: list[list[int]], sampling: SamplingParams, stop: Stop
    ) -> list[Completion]:
        places = asyncio.Semaphore(self.generator.welcome.max_requests)

        async def complete(ids: list[int]) -> Completion:
            async with places:
                return await self._complete(ids, sampling, stop)

        tasks = [asyncio.create_task(complete(ids)) for ids in prompts]
        try:
            return await asyncio.gather(*tasks)
        finally:
            await cancel_and_wait(*tasks)


class _Counted:
    """A ``Generator`` that keeps the counts of its request."""

    def __init__(self, session: SplitSession) -> None:
        self.stats = RequestStats()
        self._session = session

    @property
    def max_model_len(self) -> int:
        return self._session.max_model_len

    def generate(
        self, prompt: Sequence[int], sampling: SamplingParams, caller: Caller = NOBODY
    ) -> AsyncGenerator[Generated, None]:
        return self._session.generate(prompt, sampling, caller, self.stats)


def make_session(config: ClientConfig, dial: Dial | None = None) -> SplitSession:
    """A session for a configuration, not started yet. Finds the model, and may read all of it:
    not for an event loop. Raises ModelError."""
    path = resolve_model(config.model.model, config.model.trust_remote_code)
    hello = Hello(
        protocol=PROTOCOL_VERSION,
        fingerprint=fingerprint(path),
        cut=config.split,
        codec=wire_id(config.codec, ModelSpec.load(path).hidden_size),
        hide_tokens=config.codec.calibrated.hide_tokens,
    )

    def make_head(welcome: Welcome) -> EngineClient:
        layers = LayerConfig(first=0, stop=welcome.cut)
        cache = CacheConfig(prefix_cache=config.prefix_cache)
        engine = EngineConfig(model=config.model, layers=layers, cache=cache)
        return InProcessEngine(engine, config.codec, welcome.profile)

    async def dial_server() -> Link:
        return await connect(config.server, config.api_key, config.timeout_s)

    return SplitSession(
        dial or dial_server,
        make_head,
        hello,
        config.timeout_s,
        config.resume_timeout_s,
        partial(fetch_profile, config.server, config.api_key, config.timeout_s),
    )


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _strings(stop: Stop) -> Sequence[str]:
    return (stop,) if isinstance(stop, str) else stop


def _is_list_of(kind: type, value: object) -> bool:
    """An empty list is one of anything."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return is_list and all(isinstance(item, kind) for item in cast("Iterable[object]", value))
