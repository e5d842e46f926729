"""`sliceserve gateway`, without its command line."""

from collections.abc import Callable

from sliceserve.api.backend import Backend
from sliceserve.api.hosting import serve
from sliceserve.api.listening import ServerError, bind
from sliceserve.api.shutdown import Interrupted, Shutdown
from sliceserve.client.errors import SplitError
from sliceserve.client.sdk import AsyncSplitLLM
from sliceserve.configs import DEFAULT_TENANT, ClientConfig


async def run_gateway(
    config: ClientConfig,
    ready: Callable[[str], None] = lambda url: None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_keys: tuple[str, ...] = (),
    served_model_name: str | None = None,
    drain_timeout_s: float = 30.0,
) -> None:
    """Offer the OpenAI routes on the device, with a split client behind them. Otherwise as
    `run_server`; the model has the server's name for it unless ``served_model_name`` is given.
    """
    with Shutdown.on_signals() as shutdown, bind(host, port) as sock:
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
