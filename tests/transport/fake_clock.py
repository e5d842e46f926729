import asyncio
import heapq
import itertools
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class FakeClock:
    """Time stands still but where a test lets it jump to the next sleeper."""

    def __init__(self) -> None:
        self.time = 100.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = itertools.count()

    def now(self) -> float:
        return self.time

    async def sleep_until(self, when: float) -> None:
        if when <= self.time:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (when, next(self._count), future))
        await future

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Await the coroutine; whenever nothing else can go on, jump to the next sleeper."""
        task = asyncio.create_task(coroutine)
        while True:
            await self.settle()
            if task.done():
                return task.result()
            assert self._sleepers, "everybody waits, and nobody for the clock"
            self._wake_next()

    async def advance(self, seconds: float) -> None:
        until = self.time + seconds
        await self.settle()
        while self._sleepers and self._sleepers[0][0] <= until:
            self._wake_next()
            await self.settle()
        self.time = until

    async def settle(self) -> None:
        for _ in range(50):
            await asyncio.sleep(0)

    def _wake_next(self) -> None:
        when, _, future = heapq.heappop(self._sleepers)
        self.time = max(self.time, when)
        if not future.done():
            future.set_result(None)
