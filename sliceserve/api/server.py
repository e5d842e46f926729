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
from sliceserve.client.errors import SplitError
from sliceserve.configs import DEFAULT_TENANT, ClientConfig, ServerConfig
from sliceserve.engine.client import EngineDead
from sliceserve.engine.generation import ThinGenerator
from sliceserve.engine.process import EngineProcess
from sliceserve.models.errors import ModelError
from sliceserve.models.tokenizer import Tokenizer


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run to the end on the fastest event loop there is."""
    if sys.platform == "win32":
        asyncio.run(main)
        return
    import uvloop

    uvloop.run(main)


def _ignore(_: str) -> None:
    pass


async def run_server(
    config: ServerConfig,
    ready: Callable[[str], None] = _ignore,
    tell: Callable[[str], None] = _ignore,
) -> None:
    """Serve a model until SIGINT or SIGTERM; then let live requests finish, for
    ``drain_timeout_s`` at most. A second signal ends them at once.

    ``ready`` is called with the URL when the first request can be answered, ``tell`` before that
    with sentences about what takes long. Needs the main thread. Raises ServerError.
    """
    with Shutdown.on_signals() as shutdown, bind(config.host, config.port) as sock:
        engine = EngineProcess(config.engine_for_tenants, tell)
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
                api_keys=config.tenant_of_key,
                drain_timeout_s=config.drain_timeout_s,
                split_limits=SplitLimits(
                    resume_timeout_s=config.engine.scheduler.detached_timeout_s
                ),
            )
        except Interrupted:
            return
        except (EngineDead, ModelError) as error:
            raise ServerError(f"the engine cannot start: {error}") from error
        finally:
            await engine.stop()


async def run_gateway(
    config: ClientConfig,
    ready: Callable[[str], None] = _ignore,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_keys: tuple[str, ...] = (),
    served_model_name: str | None = None,
    drain_timeout_s: float = 30.0,
) -> None:
    """Offer the OpenAI routes on the device, with a split client behind them. Otherwise as
    ``run_server``; the model has the server's name for it unless ``served_model_name`` is given.
    """
    with Shutdown.on_signals() as shutdown, bind(host, port) as sock:
        # Here, because it brings torch, which a server's API process does without.
        from sliceserve.client.sdk import AsyncSplitLLM

        llm = AsyncSplitLLM(config=config)
        try:
            await shutdown.guard(llm.start())
            backend = Backend(
                models=(served_model_name or llm.generator.welcome.model,),
                fingerprint=llm.head.info.fingerprint,
                tokenizer=llm.tokenizer,
                generator=llm.generator,
                engine=None,
                stats=llm.head.stats,
            )
            await serve(
                backend,
                sock,
                shutdown,
                llm.close,
                ready,
                api_keys=dict.fromkeys(api_keys, DEFAULT_TENANT),
                drain_timeout_s=drain_timeout_s,
            )
        except Interrupted:
            return
        except (SplitError, ValueError) as error:
            raise ServerError(f"the split client cannot start: {error}") from error
        finally:
            await llm.close()
