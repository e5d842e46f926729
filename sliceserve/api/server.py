"""`sliceserve serve` and `sliceserve gateway`, without their command lines."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from sliceserve.api.backend import Backend
from sliceserve.api.hosting import ServerError, bind, serve
from sliceserve.api.shutdown import Interrupted, Shutdown
from sliceserve.api.split import SplitLimits
from sliceserve.configs import ServerConfig
from sliceserve.engine.client import EngineDead
from sliceserve.engine.generation import ThinGenerator
from sliceserve.engine.process import EngineProcess
from sliceserve.models.tokenizer import Tokenizer


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run to the end on the fastest event loop there is."""
    if sys.platform == "win32":
        asyncio.run(main)
        return
    import uvloop

    uvloop.run(main)


async def run_server(config: ServerConfig, ready: Callable[[str], None] = lambda url: None) -> None:
    """Serve a model until SIGINT or SIGTERM; then let live requests finish, for
    ``drain_timeout_s`` at most. A second signal ends them at once.

    ``ready`` is called with the URL when the first request can be answered. Needs the main
    thread. Raises ServerError.
    """
    with Shutdown.on_signals() as shutdown, bind(config.host, config.port) as sock:
        engine = EngineProcess(config.engine)
        try:
            info = await shutdown.guard(engine.start())
            tokenizer = await asyncio.to_thread(
                Tokenizer.load, Path(info.model_path), config.engine.model.trust_remote_code
            )
            backend = Backend(
                models=(config.served_model_name or info.model,),
                fingerprint=info.fingerprint,
                tokenizer=tokenizer,
                generator=ThinGenerator(engine) if info.thin else None,
                engine=engine,
                stats=engine.stats,
            )
            await serve(
                backend,
                sock,
                shutdown,
                engine.stop,
                ready,
                api_keys=config.api_keys,
                drain_timeout_s=config.drain_timeout_s,
                split_limits=SplitLimits(
                    resume_timeout_s=config.engine.scheduler.detached_timeout_s
                ),
            )
        except Interrupted:
            return
        except EngineDead as error:
            raise ServerError(f"the engine cannot start: {error}") from error
        finally:
            await engine.stop()
