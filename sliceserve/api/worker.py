"""An API worker: ``python -m sliceserve.api.worker``, started by WorkerProcess.

It holds sockets, and nothing that must outlive it: requests live in the engine.
"""

import asyncio
import contextlib
import io
import os
import resource
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import msgspec

from sliceserve.api.backend import Backend
from sliceserve.api.hosting import serve
from sliceserve.api.limits import Accounts
from sliceserve.api.listening import ServerError, inherit
from sliceserve.api.server import run
from sliceserve.api.shared_usage import SharedUsage
from sliceserve.api.shutdown import Interrupted, Shutdown
from sliceserve.api.split import SplitLimits
from sliceserve.api.worker_process import Admit, End, Failed, Order, Ready, Report, WorkerSettings
from sliceserve.configs import ServerConfig
from sliceserve.engine.client import EngineDead
from sliceserve.engine.generation import ThinGenerator
from sliceserve.engine.messages import EngineFailed
from sliceserve.engine.process import RemoteEngine
from sliceserve.models.chat_template import with_template_read
from sliceserve.models.errors import ModelError
from sliceserve.models.tokenizer import Tokenizer
from sliceserve.tracing import Tracing, TracingError, make_tracing


def main() -> None:
    # Without a buffer there is no lock that a thread could hold when the process ends.
    stdin = io.FileIO(sys.stdin.fileno(), closefd=False)
    settings = msgspec.json.decode(stdin.readline(), type=WorkerSettings)
    if not settings.config.engine.model.trust_remote_code:
        _do_without_torch()
    _allow_many_sockets()
    try:
        run(_serve(settings, stdin))
    except (ServerError, ModelError, EngineDead, TracingError) as error:
        _say(Failed(str(error)))
        sys.exit(1)


def _do_without_torch() -> None:
    """Of transformers a worker needs the tokenizers alone, but it imports torch where it finds it:
    three times the memory, and seconds of the start."""
    sys.modules["torch"] = None  # type: ignore[assignment]
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"


def _allow_many_sockets() -> None:
    """As many as this process may ask for: what it is given at first is often 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some systems name a limit that they do not grant.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _serve(settings: WorkerSettings, orders: Iterable[bytes]) -> None:
    config = settings.config
    engine = RemoteEngine(settings.engine_address, settings.peer)
    shared = Path(settings.shared)
    accounts = Accounts(config.keyring, lambda tenant: SharedUsage(shared, tenant))
    tracing = make_tracing(config.otlp_traces_endpoint, "sliceserve-server")
    with Shutdown.on_signals() as shutdown, inherit(settings.listener) as sock:
        _obey(orders, shutdown, engine, accounts)
        try:
            backend = await shutdown.guard(_make_backend(config, engine, tracing))
            await serve(
                backend,
                sock,
                shutdown,
                engine.stop,
                lambda url: _say(Ready()),
                http=config,
                accounts=accounts,
                split_limits=SplitLimits(
                    resume_timeout_s=config.engine.scheduler.detached_timeout_s
                ),
            )
        except Interrupted:
            return
        finally:
            await engine.stop()
            if tracing is not None:
                tracing.close()


async def _make_backend(
    config: ServerConfig, engine: RemoteEngine, tracing: Tracing | None
) -> Backend:
    info = await engine.start()
    tokenizer = await asyncio.to_thread(
        Tokenizer.load, Path(info.model_path), config.engine.model.trust_remote_code
    )
    return Backend(
        models=(config.served_model_name or info.model,),
        fingerprint=info.fingerprint,
        tokenizer=tokenizer,
        generator=ThinGenerator(engine) if info.thin else None,
        engine=engine,
        stats=engine.stats,
        chat=with_template_read(config.chat),
        tracing=tracing,
    )


def _obey(
    orders: Iterable[bytes], shutdown: Shutdown, engine: RemoteEngine, accounts: Accounts
) -> None:
    """Follow orders from now on, on the running event loop. When they end, the server is dead."""
    loop = asyncio.get_running_loop()

    def follow(order: Order) -> None:
        if isinstance(order, EngineFailed):
            engine.fail(order.error)
            return
        if isinstance(order, Admit):
            accounts.update(order.keyring)
            return
        shutdown.requested.set()
        if isinstance(order, End):
            shutdown.urgent.set()

    def listen() -> None:
        for line in orders:
            loop.call_soon_threadsafe(follow, msgspec.json.decode(line, type=Order))
        os._exit(1)

    # A thread, so that not even an event loop that is stuck outlives the server.
    threading.Thread(target=listen, daemon=True).start()


def _say(report: Report) -> None:
    print(msgspec.json.encode(report).decode(), flush=True)


if __name__ == "__main__":
    main()
