"""Signals as events of an event loop: SIGINT and SIGTERM, and SIGHUP."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from sliceserve.configs.loading import ConfigError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def on_hangup(reload: Callable[[], None]) -> None:
    """Call ``reload`` at each SIGHUP from now on, for as long as the running event loop lives. What
    it raises as ConfigError is logged, and changes nothing."""

    def received() -> None:
        try:
            reload()
        except ConfigError as error:
            logger.error("nothing was changed at SIGHUP: %s", error)
        else:
            logger.warning("keys and tenants were read again")

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, received)


class Interrupted(Exception):
    """A signal came before the work was done."""


class Shutdown:
    """``requested`` by the first signal, ``urgent`` by the second."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.urgent = asyncio.Event()

    @classmethod
    @contextlib.contextmanager
    def on_signals(cls) -> "Iterator[Shutdown]":
        """Listen to signals while the context is open; needs the main thread's event loop."""
        shutdown = cls()
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, shutdown._receive)
        try:
            yield shutdown
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _receive(self) -> None:
        if self.requested.is_set():
            self.urgent.set()
        self.requested.set()

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``. Raises Interrupted, and cancels it, at the first signal."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.create_task(self.requested.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise Interrupted
            return working.result()
        finally:
            working.cancel()
            stopping.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)
