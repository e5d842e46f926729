"""The SDK without an event loop: it keeps one of its own in a thread."""

import asyncio
import atexit
import concurrent.futures
import contextlib
import threading
import weakref
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, TypeVar, cast, overload

from typing_extensions import Self, Unpack

from sliceserve.client.build import Settings, read_settings
from sliceserve.client.completion import Completion
from sliceserve.client.connection import Dial
from sliceserve.client.errors import SplitError
from sliceserve.client.options import CallOptions, ClientOptions, Message, Prompt
from sliceserve.client.sdk import AsyncSplitLLM
from sliceserve.client.stats import SessionStats
from sliceserve.configs import ClientConfig, SamplingParams
from sliceserve.engine.generation import TextChunk
from sliceserve.models.tokenizer import Tokenizer

T = TypeVar("T")

_EXIT_TIMEOUT_S = 5.0


class SplitLLM:
    """A model whose first layers run here and whose others run on a server.

        llm = SplitLLM("http://127.0.0.1:8000", split=8)
        print(llm.chat("Why is the sky blue?", max_tokens=64).text)

    Arguments, methods, properties and errors are those of AsyncSplitLLM; here they wait for the
    result. It connects at once. Any thread may call it. ``close`` ends it, and so do ``with``, its
    collection and the end of the program.
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        config: ClientConfig | None = None,
        dial: Dial | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        self._llm = AsyncSplitLLM(server, config=config, dial=dial, **options)
        self._thread = _LoopThread(self._llm)
        # Collected without close(), perhaps by the loop's own thread: nobody may wait here.
        self._collected = weakref.finalize(self, self._thread.stop)
        self._collected.atexit = False
        try:
            self._thread.run(self._llm.start())
        except BaseException:
            self.close()
            raise

    @classmethod
    def from_config(
        cls,
        settings: Settings | None = None,
        *,
        server: str | None = None,
        **options: Unpack[ClientOptions],
    ) -> Self:
        """See AsyncSplitLLM.from_config."""
        return cls(server, config=read_settings(settings), **options)

    def __repr__(self) -> str:
        return repr(self._llm).removeprefix("Async")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End live calls and the connection. May be called twice."""
        self._collected.detach()
        self._thread.stop()
        self._thread.join()

    @property
    def state(self) -> str:
        return self._llm.state

    @property
    def stats(self) -> SessionStats:
        async def read() -> SessionStats:
            return self._llm.stats

        return self._thread.run(read())

    @property
    def tokenizer(self) -> Tokenizer:
        return self._llm.tokenizer

    @property
    def num_layers(self) -> int:
        return self._llm.num_layers

    @property
    def split(self) -> int:
        return self._llm.split

    @property
    def codec(self) -> str:
        return self._llm.codec

    @overload
    def generate(
        self,
        prompt: str | list[int],
        sampling: SamplingParams | None = None,
        **options: Unpack[CallOptions],
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: list[str],
        sampling: SamplingParams | None = None,
        **options: Unpack[CallOptions],
    ) -> list[Completion]: ...

    def generate(
        self,
        prompt: Any,
        sampling: SamplingParams | None = None,
        **options: Unpack[CallOptions],
    ) -> Completion | list[Completion]:
        """See AsyncSplitLLM.generate."""
        work = self._llm.generate(prompt, sampling, **options)
        return cast("Completion | list[Completion]", self._thread.run(work))

    def chat(
        self,
        messages: str | Sequence[Message],
        sampling: SamplingParams | None = None,
        **options: Unpack[CallOptions],
    ) -> Completion:
        """See AsyncSplitLLM.chat."""
        return self._thread.run(self._llm.chat(messages, sampling, **options))

    def stream(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        **options: Unpack[CallOptions],
    ) -> Iterator[TextChunk]:
        """See AsyncSplitLLM.stream. Ending the iteration early ends the request."""
        chunks = self._llm.stream(prompt, sampling, **options)

        async def following() -> TextChunk | None:
            return await anext(chunks, None)

        async def end() -> None:
            await chunks.aclose()

        try:
            while (chunk := self._thread.run(following())) is not None:
                yield chunk
        finally:
            # Like the collection of this object, an iterator's may happen in any thread.
            self._thread.submit(end())


class _LoopThread:
    """A thread with an event loop, for as long as the model lives that runs on it."""

    def __init__(self, llm: AsyncSplitLLM) -> None:
        self._llm = llm
        self._started: concurrent.futures.Future[asyncio.AbstractEventLoop]
        self._started = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main()), name="sliceserve-client", daemon=True
        )
        self._thread.start()
        self._loop = self._started.result()
        atexit.register(self._say_goodbye)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work`` on the loop, waited for. Raises SplitError if it has ended."""
        future = self.submit(work)
        if future is None:
            raise SplitError("this client is closed; make a new one")
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise SplitError("this client was closed during the call") from error
        finally:
            # Whoever waits may be interrupted.
            future.cancel()

    def submit(self, work: Coroutine[Any, Any, T]) -> "concurrent.futures.Future[T] | None":
        """Start ``work`` on the loop; None if that has ended."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            # The loop was closed between any test of it and the call.
            work.close()
            return None

    def stop(self) -> None:
        """Ask for the end; does not wait."""
        atexit.unregister(self._say_goodbye)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stopping.set)

    def join(self) -> None:
        self._thread.join()

    async def _main(self) -> None:
        self._stopping = asyncio.Event()
        self._started.set_result(asyncio.get_running_loop())
        await self._stopping.wait()
        # asyncio.run cancels and awaits the calls that are still going on.
        await self._llm.close()

    def _say_goodbye(self) -> None:
        """The program ends: the server should know, and an engine that computes while its thread
        is taken away would abort the process. The loop stays: to end it takes threads, which can
        no longer be started."""
        future = self.submit(self._llm.close())
        if future is not None:
            with contextlib.suppress(concurrent.futures.TimeoutError):
                future.result(_EXIT_TIMEOUT_S)
