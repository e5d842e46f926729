"""Whether a server takes new work, and how much it has."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from sliceserve.api.errors import ApiError


class Lifecycle:
    """Counts live work; once draining, refuses more. For one event loop."""

    def __init__(self) -> None:
        self._num_live = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._drain_seconds: float | None = None
        self._drain_listeners: list[Callable[[float], None]] = []
        self._end_listeners: list[Callable[[], Awaitable[None]]] = []

    @property
    def draining(self) -> bool:
        return self._drain_seconds is not None

    @property
    def num_live(self) -> int:
        return self._num_live

    @contextmanager
    def work(self) -> Iterator[None]:
        """A piece of work that a drain waits for."""
        self._num_live += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_live -= 1
            if self._num_live == 0:
                self._idle.set()

    def expect_serving(self) -> None:
        """Raise ApiError 503 when draining."""
        if self._drain_seconds is not None:
            raise ApiError(
                503,
                "this server is shutting down; send the request to another one",
                "draining",
                retry_after_s=self._drain_seconds,
            )

    def on_drain(self, listener: Callable[[float], None]) -> None:
        """Call ``listener`` with the seconds left once a drain begins."""
        self._drain_listeners.append(listener)

    def on_end(self, listener: Callable[[], Awaitable[None]]) -> None:
        """Call ``listener`` before the server closes its sockets."""
        self._end_listeners.append(listener)

    def begin_drain(self, seconds: float) -> None:
        """Refuse new work from now on; what is live may go on for ``seconds``."""
        if self._drain_seconds is None:
            self._drain_seconds = seconds
            for listener in self._drain_listeners:
                listener(seconds)

    async def wait_idle(self) -> None:
        """Return when nothing is live."""
        await self._idle.wait()

    async def end(self) -> None:
        """Return when all who wanted have said their last words."""
        for listener in self._end_listeners:
            await listener()
