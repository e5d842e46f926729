"""The SDK on an event loop. `sliceserve.client.sync` has it without one."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast, overload

from typing_extensions import Self, Unpack

from sliceserve.client.build import Settings, make_session, put_over, read_settings
from sliceserve.client.call import Call
from sliceserve.client.completion import Completion
from sliceserve.client.connection import Dial
from sliceserve.client.errors import SplitError
from sliceserve.client.options import (
    ClientOptions,
    Message,
    Prompt,
    SamplingOptions,
    Stop,
    chosen_sampling,
)
from sliceserve.client.session import SplitSession
from sliceserve.client.stats import SessionStats
from sliceserve.configs import ClientConfig, SamplingParams
from sliceserve.engine.client import EngineClient
from sliceserve.engine.generation import TextChunk
from sliceserve.models.tokenizer import Tokenizer


class AsyncSplitLLM:
    """A model whose first layers run here and whose others run on a server.

    ``server`` is where `sliceserve serve` runs. The options: ``split``, how many layers run here
    (None: what the server suggests); ``codec``, the name or settings of the codec; ``model``,
    ``device`` and ``dtype`` of the layers here; ``api_key``; ``connect_timeout_s``, ``timeout_s``,
    ``resume_timeout_s`` and ``max_retries`` as in Patience. What is not given is taken from
    ``config``. ``dial`` makes links in another way than by WebSocket.

    Usable on one event loop, at once (the first call starts it) or with ``async with``, which also
    ends it. Any number of calls may run at a time; they share one connection. Errors are
    SplitError, ModelError for a model that cannot be run, and ValueError for settings.
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        config: ClientConfig | None = None,
        dial: Dial | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        self._config = put_over(config or ClientConfig(), server, options)
        self._dial = dial
        self._starting = asyncio.Lock()
        self._session: SplitSession | None = None
        self._tokenizer: Tokenizer | None = None
        self._closed = False

    @classmethod
    def from_config(
        cls,
        settings: Settings | None = None,
        *,
        server: str | None = None,
        **options: Unpack[ClientOptions],
    ) -> Self:
        """A client by the settings in a YAML file, or a mapping of the same form; variables
        SLICESERVE_* go over these, as for the commands, and what is given here over both. A
        ClientConfig is taken as it is. Raises ConfigError."""
        return cls(server, config=read_settings(settings), **options)

    def __repr__(self) -> str:
        config, session = self._config, self._session
        split = config.split if session is None else f"{self.split} of {self.num_layers}"
        codec = config.codec.name if session is None else self.codec
        parts = (
            repr(config.server),
            f"model={config.model.model!r}",
            f"split={split or 'auto'}",
            f"codec={codec!r}",
            self.state,
        )
        return f"{type(self).__name__}({', '.join(parts)})"

    async def __aenter__(self) -> Self:
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
    def state(self) -> str:
        """How things are: "not started", "connected", "disconnected" (until a call needs the
        line), "draining" (the server is going away) or "closed"."""
        if self._closed:
            return "closed"
        return "not started" if self._session is None else self._session.state

    @property
    def stats(self) -> SessionStats:
        """What all calls have cost until now."""
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
        priority: int = 0,
        timeout_s: float | None = None,
        **params: Unpack[SamplingOptions],
    ) -> Completion: ...

    @overload
    async def generate(
        self,
        prompt: list[str],
        sampling: SamplingParams | None = None,
        *,
        stop: Stop = (),
        priority: int = 0,
        timeout_s: float | None = None,
        **params: Unpack[SamplingOptions],
    ) -> list[Completion]: ...

    async def generate(
        self,
        prompt: str | list[int] | list[str],
        sampling: SamplingParams | None = None,
        *,
        stop: Stop = (),
        priority: int = 0,
        timeout_s: float | None = None,
        **params: Unpack[SamplingOptions],
    ) -> Completion | list[Completion]:
        """Complete a text, token ids, or a list of texts (at the same time, answered in order).

        ``params`` are fields of SamplingParams, and are put over ``sampling``: ``max_tokens``,
        ``temperature``, ``top_p``, ``seed``, …. ``stop`` are strings to end before. The lower
        ``priority``, the more urgent, where the server's policy looks at it. The whole call fails
        with RequestTimeout ``timeout_s`` seconds after the client is ready. Raises RequestFailed;
        of a list, for the first that fails, and the others end.
        """
        chosen = chosen_sampling(sampling, params)
        call = await self._call(chosen, stop, priority, timeout_s)
        if _is_list_of(str, prompt):
            texts = cast("list[str]", prompt)
            return await call.complete_all([self.tokenizer.encode(text) for text in texts])
        return await call.complete(self._token_ids(cast("str | list[int]", prompt)))

    async def chat(
        self,
        messages: str | Sequence[Message],
        sampling: SamplingParams | None = None,
        *,
        stop: Stop = (),
        priority: int = 0,
        timeout_s: float | None = None,
        **params: Unpack[SamplingOptions],
    ) -> Completion:
        """Answer a conversation in the model's chat template; a text is a conversation of one
        message. Otherwise as ``generate``. Raises ModelError if the model has no template."""
        chosen = chosen_sampling(sampling, params)
        call = await self._call(chosen, stop, priority, timeout_s)
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return await call.complete(self._token_ids(messages))

    async def stream(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        *,
        stop: Stop = (),
        priority: int = 0,
        timeout_s: float | None = None,
        **params: Unpack[SamplingOptions],
    ) -> AsyncGenerator[TextChunk, None]:
        """The answer piece by piece: a text or token ids are completed, a conversation is
        answered. Otherwise as ``generate``. Closing the generator ends the request."""
        chosen = chosen_sampling(sampling, params)
        call = await self._call(chosen, stop, priority, timeout_s)
        chunks = call.stream(self._token_ids(prompt))
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()

    async def _call(
        self, sampling: SamplingParams, stop: Stop, priority: int, timeout_s: float | None
    ) -> Call:
        await self.start()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        strings = (stop,) if isinstance(stop, str) else stop
        return Call(self.generator, self.tokenizer, sampling, strings, priority, deadline)

    def _token_ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        if prompt and _is_list_of(Mapping, prompt):
            messages = cast("Sequence[Message]", prompt)
            return self.tokenizer.chat_prompt([dict(message) for message in messages])
        return list(cast("Sequence[int]", prompt))


def _is_list_of(kind: type, value: object) -> bool:
    """An empty list is one of anything."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return is_list and all(isinstance(item, kind) for item in cast("Iterable[object]", value))
