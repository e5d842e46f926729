"""`sliceserve serve`, without its command line: one engine process, and workers that speak to the
world."""

import asyncio
import contextlib
import socket
import sys
import tempfile
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from prometheus_client.multiprocess import mark_process_dead

from sliceserve.api.listening import ServerError, bind, expect_certificate, url_of
from sliceserve.api.shutdown import Interrupted, Shutdown, on_hangup
from sliceserve.api.supervisor import Supervisor
from sliceserve.api.worker_process import Admit, WorkerProcess
from sliceserve.configs import ServerConfig
from sliceserve.configs.key_file import with_key_file
from sliceserve.engine.client import EngineClient, EngineDead, watch
from sliceserve.engine.messages import EngineFailed, EngineInfo, PeerGone
from sliceserve.engine.process import EngineProcess

# For workers that keep to the time to say their last words, before they are hurried.
_DRAIN_MARGIN_S = 5.0


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run to the end on the fastest event loop there is."""
    if sys.platform == "win32":
        asyncio.run(main)
        return
    import uvloop

    uvloop.run(main)


async def run_server(
    config: ServerConfig,
    ready: Callable[[str, EngineInfo], None] = lambda url, info: None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Serve a model until SIGINT or SIGTERM; then let live requests finish, for
    ``drain_timeout_s`` at most. A second signal ends them at once.

    ``ready`` is called with the URL and what the engine serves when all workers answer requests,
    ``tell`` before that with sentences about what takes long. At SIGHUP the file of keys is read
    again. Needs the main thread. Raises ServerError, and ConfigError for a file of keys that cannot
    be used.
    """
    admitting = with_key_file(config)
    expect_certificate(config)
    with (
        Shutdown.on_signals() as shutdown,
        bind(config.host, config.port) as sock,
        tempfile.TemporaryDirectory(prefix="sliceserve-") as shared,
    ):
        engine = EngineProcess(admitting.engine_for_tenants, tell)
        workers = _Workers(engine, admitting, sock, shared)
        if config.api_keys_file is not None:
            on_hangup(lambda: workers.admit(with_key_file(config)))
        try:
            await shutdown.guard(start(engine, workers))
            ready(url_of(sock, config), engine.info)
            await until_stopped(engine, workers, shutdown, config.drain_timeout_s)
        except Interrupted:
            return
        finally:
            await workers.stop()
            await engine.stop()


class _Workers(Supervisor[WorkerProcess]):
    """The workers of a server. ``shared`` is the folder in which they count together."""

    def __init__(
        self, engine: EngineProcess, config: ServerConfig, sock: socket.socket, shared: str
    ) -> None:
        super().__init__(config.api_workers, self._spawn_one, self._bury)
        self._engine = engine
        self._config = config
        self._sock = sock
        self._shared = shared

    def admit(self, config: ServerConfig) -> None:
        """Let those in from now on whom ``config`` knows."""
        self._config = config
        self.order(Admit(config.keyring))

    async def _spawn_one(self) -> WorkerProcess:
        return await WorkerProcess.spawn(
            self._config, self._engine.address, self._sock, self._shared
        )

    def _bury(self, worker: WorkerProcess) -> None:
        mark_process_dead(worker.pid, self._shared)
        with contextlib.suppress(EngineDead):
            self._engine.send(PeerGone(worker.peer))


async def start(engine: EngineClient, workers: Supervisor[Any]) -> None:
    """Return when all workers serve. Raises ServerError."""
    # They import what they need while the engine loads, and wait for it then.
    await workers.start()
    tasks = []
    try:
        await engine.start()
        ready = asyncio.create_task(workers.ready())
        # Workers cannot see that it has died: they would wait for ever.
        watching = asyncio.create_task(watch(engine.stats))
        tasks = [ready, watching]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await (ready if ready.done() else watching)
    except EngineDead as error:
        raise ServerError(f"the engine cannot start: {error}") from error
    finally:
        await _cancel(*tasks)


async def until_stopped(
    engine: EngineClient, workers: Supervisor[Any], shutdown: Shutdown, timeout_s: float
) -> None:
    """Until a signal, and what is live then has ended or had ``timeout_s``. Raises ServerError when
    the engine dies, or workers do over and over."""
    watching = asyncio.create_task(watch(engine.stats))
    keeping = asyncio.create_task(workers.keep())
    requested = asyncio.create_task(shutdown.requested.wait())
    try:
        await asyncio.wait({watching, keeping, requested}, return_when=asyncio.FIRST_COMPLETED)
        if requested.done():
            keeping.cancel()
            await _drain(workers, shutdown, watching, timeout_s)
        elif keeping.done():
            keeping.result()
        if watching.done():
            reason = str(watching.exception())
            workers.order(EngineFailed(reason))
            raise ServerError(f"the engine has died: {reason}")
    finally:
        await _cancel(watching, keeping, requested)


async def _drain(
    workers: Supervisor[Any],
    shutdown: Shutdown,
    watching: "asyncio.Task[NoReturn]",
    timeout_s: float,
) -> None:
    draining = asyncio.create_task(workers.drain())
    urgent = asyncio.create_task(shutdown.urgent.wait())
    await asyncio.wait(
        {draining, urgent, watching},
        timeout=timeout_s + _DRAIN_MARGIN_S,
        return_when=asyncio.FIRST_COMPLETED,
    )
    await _cancel(draining, urgent)


async def _cancel(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
