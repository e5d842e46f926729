"""One application on one socket, from ready to drained."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

import uvicorn

from sliceserve.api.app import create_app
from sliceserve.api.backend import Backend
from sliceserve.api.lifecycle import Lifecycle
from sliceserve.api.limits import Accounts
from sliceserve.api.listening import ServerError, cannot_listen, url_of
from sliceserve.api.shutdown import Shutdown
from sliceserve.api.split import SplitLimits
from sliceserve.configs import HttpConfig
from sliceserve.engine.client import watch
from sliceserve.transport.frames import MAX_FRAME_BYTES

# For answers that are on their way when everything has ended.
_CLOSE_TIMEOUT_S = 2


async def serve(
    backend: Backend,
    sock: socket.socket,
    shutdown: Shutdown,
    close: Callable[[], Awaitable[None]],
    ready: Callable[[str], None],
    *,
    http: HttpConfig,
    accounts: Accounts | None = None,
    split_limits: SplitLimits | None = None,
) -> None:
    """Serve until a signal, then drain. ``http`` and ``accounts`` as in `create_app`. ``ready`` is
    called with the URL once requests are answered; ``close`` ends the backend when live requests
    are done or out of time. Raises ServerError when the engine dies."""
    lifecycle = Lifecycle()
    app = create_app(
        backend, http=http, accounts=accounts, lifecycle=lifecycle, split_limits=split_limits
    )
    url = url_of(sock, http)
    address = sock.getsockname()
    server = _Server(_uvicorn_config(app, http), lambda: ready(url))
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    watching = asyncio.create_task(watch(backend.stats))
    requested = asyncio.create_task(shutdown.requested.wait())
    try:
        await asyncio.wait({serving, watching, requested}, return_when=asyncio.FIRST_COMPLETED)
        if requested.done():
            await _drain(lifecycle, shutdown, watching, http.drain_timeout_s)
        await lifecycle.end()
        # What is still live ends with an answer that says so.
        await close()
        server.should_exit = True
        await serving
        if watching.done() and not shutdown.requested.is_set():
            raise ServerError(f"the engine has died: {watching.exception()}")
    except OSError as error:
        raise cannot_listen(address[0], address[1], error) from error
    finally:
        for task in (serving, watching, requested):
            task.cancel()
        await asyncio.gather(serving, watching, requested, return_exceptions=True)


async def _drain(
    lifecycle: Lifecycle, shutdown: Shutdown, watching: "asyncio.Task[None]", timeout_s: float
) -> None:
    lifecycle.begin_drain(timeout_s)
    idle = asyncio.create_task(lifecycle.wait_idle())
    urgent = asyncio.create_task(shutdown.urgent.wait())
    await asyncio.wait(
        {idle, urgent, watching}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
    )
    idle.cancel()
    urgent.cancel()


class _Server(uvicorn.Server):
    """Uvicorn, but signals are not its business."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()


def _uvicorn_config(app: object, http: HttpConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http="httptools",
        ws="websockets-sansio",
        ws_max_size=MAX_FRAME_BYTES,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_CLOSE_TIMEOUT_S,
        ssl_certfile=http.ssl_certfile,
        ssl_keyfile=http.ssl_keyfile,
    )
