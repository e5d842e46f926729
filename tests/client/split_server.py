"""A real server in the test's own event loop: engine in a thread, application under uvicorn."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Literal

import uvicorn

from sliceserve.api.app import create_app
from sliceserve.api.backend import Backend
from sliceserve.api.limits import Accounts
from sliceserve.api.listening import bind
from sliceserve.configs import (
    CacheConfig,
    EngineConfig,
    Keyring,
    LayerConfig,
    ModelConfig,
    SchedulerConfig,
)
from sliceserve.engine.in_process import InProcessEngine
from sliceserve.models.tokenizer import Tokenizer
from sliceserve.tracing import Tracing


class SplitServer:
    """``await engine.stats()`` tells what clients have left behind."""

    def __init__(self, engine: InProcessEngine, port: int) -> None:
        self.engine = engine
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    async def num_live(self) -> int:
        return (await self.engine.stats()).num_live


@asynccontextmanager
async def split_server(
    path: str,
    first: int = 1,
    port: int = 0,
    api_keys: tuple[str, ...] = (),
    profiles: Literal["auto", "off"] = "off",
    cuts: tuple[int, ...] = (1, 3, 5),
    prefix_cache: bool = True,
    tracing: Tracing | None = None,
    **scheduler: int,
) -> AsyncIterator[SplitServer]:
    """Layers from ``first`` on, in float32; ``port`` 0 takes a free one."""
    engine = InProcessEngine(
        EngineConfig(
            model=ModelConfig(model=path, dtype="float32", device="cpu"),
            layers=LayerConfig(first=first, cuts=cuts),
            cache=CacheConfig(num_tokens=2048, block_size=8, prefix_cache=prefix_cache),
            scheduler=SchedulerConfig(**scheduler),
            profiles=profiles,
        )
    )
    info = await engine.start()
    backend = Backend(
        models=("tiny",),
        fingerprint=info.fingerprint,
        tokenizer=Tokenizer.load(Path(path)),
        generator=None,
        engine=engine,
        stats=engine.stats,
        tracing=tracing,
    )
    app = create_app(backend, accounts=Accounts(Keyring(api_keys=tuple(api_keys))))
    config = uvicorn.Config(
        app, ws="websockets-sansio", ws_per_message_deflate=False, lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    # Signals are the test runner's.
    server.capture_signals = nullcontext
    with bind("127.0.0.1", port) as sock:
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield SplitServer(engine, sock.getsockname()[1])
        finally:
            server.should_exit = server.force_exit = True
            await serving
            await engine.stop()
