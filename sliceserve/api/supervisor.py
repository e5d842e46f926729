"""Keeps the workers of a server going: starts them, replaces those that die, ends them all."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, NoReturn, Protocol, TypeVar

from sliceserve.api.listening import ServerError
from sliceserve.api.worker_process import Drain, End, Order

logger = logging.getLogger(__name__)

# For last words to those whose requests are live.
_END_TIMEOUT_S = 5.0


class Worker(Protocol):
    """What a supervisor needs of `WorkerProcess`."""

    async def ready(self) -> None: ...

    async def ended(self) -> str: ...

    def order(self, order: Order) -> None: ...

    def kill(self) -> None: ...


W = TypeVar("W", bound=Worker)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """With workers that die. One that has lived for ``settled_s`` is replaced at once. The first
    that has not is replaced after ``pause_s``, the next after twice that, and so on; after
    ``max_early`` such deaths in a row there is no point in going on."""

    settled_s: float = 10.0
    pause_s: float = 0.25
    max_early: int = 5


class Supervisor(Generic[W]):
    """``num_workers`` workers made by ``spawn``. ``bury`` hears of each that has died while it was
    to live, before another takes its place."""

    def __init__(
        self,
        num_workers: int,
        spawn: Callable[[], Awaitable[W]],
        bury: Callable[[W], None],
        patience: Patience | None = None,
    ) -> None:
        self._num_workers = num_workers
        self._spawn = spawn
        self._bury = bury
        self._patience = patience or Patience()
        self._workers: list[W] = []

    async def start(self) -> None:
        """Start all; they are not `ready` yet."""
        while len(self._workers) < self._num_workers:
            self._workers.append(await self._spawn())

    async def ready(self) -> None:
        """Return when all serve. Raises ServerError if one cannot."""
        for worker in self._workers:
            await worker.ready()

    async def keep(self) -> NoReturn:
        """Replace those that die. Raises ServerError when it is no use."""
        keeping = [asyncio.create_task(self._keep(place)) for place in range(self._num_workers)]
        try:
            await asyncio.wait(keeping, return_when=asyncio.FIRST_COMPLETED)
            raise next(error for task in keeping if task.done() and (error := task.exception()))
        finally:
            for task in keeping:
                task.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)

    async def drain(self) -> None:
        """Let all finish what is live, and return when they have ended."""
        self.order(Drain())
        await self._all_ended()

    async def stop(self) -> None:
        """End all now, those that do not listen by force. May be called twice."""
        self.order(End())
        try:
            await asyncio.wait_for(self._all_ended(), _END_TIMEOUT_S)
        except asyncio.TimeoutError:
            for worker in self._workers:
                worker.kill()
            await self._all_ended()

    def order(self, order: Order) -> None:
        """Tell all what to do."""
        for worker in self._workers:
            worker.order(order)

    async def _all_ended(self) -> None:
        await asyncio.gather(*(worker.ended() for worker in self._workers))

    async def _keep(self, place: int) -> None:
        clock = asyncio.get_running_loop().time
        patience = self._patience
        num_early = 0
        born = clock()
        while True:
            worker = self._workers[place]
            how = await worker.ended()
            self._bury(worker)
            num_early = 0 if clock() - born >= patience.settled_s else num_early + 1
            if num_early == patience.max_early:
                raise ServerError(
                    f"{num_early} API workers in a row ended soon after their start, the last with "
                    f"this: {how}"
                )
            logger.warning("an API worker has ended (%s); another takes its place", how)
            if num_early:
                await asyncio.sleep(patience.pause_s * 2 ** (num_early - 1))
            born = clock()
            self._workers[place] = await self._spawn()
