"""`sliceserve gateway`, without its command line."""

from collections.abc import Callable

from sliceserve.api.backend import Backend
from sliceserve.api.hosting import serve
from sliceserve.api.listening import ServerError, bind
from sliceserve.api.shutdown import Interrupted, Shutdown
from sliceserve.client.errors import SplitError
from sliceserve.client.sdk import AsyncSplitLLM
from sliceserve.configs import DEFAULT_TENANT, GatewayConfig
from sliceserve.models.chat_template import with_template_read
from sliceserve.models.errors import ModelError


async def run_gateway(
    config: GatewayConfig, ready: Callable[[str], None] = lambda url: None
) -> None:
    """Offer the OpenAI routes on the device, with a split client behind them. Otherwise as
    `run_server`."""
    with Shutdown.on_signals() as shutdown, bind(config.host, config.port) as sock:
        llm = AsyncSplitLLM(config=config)
        try:
            await shutdown.guard(llm.start())
            backend = Backend(
                models=(config.served_model_name or llm.generator.welcome.model,),
                fingerprint=llm.head.info.fingerprint,
                tokenizer=llm.tokenizer,
                generator=llm.generator,
                engine=None,
                stats=llm.head.stats,
                session=lambda: llm.stats,
                chat=with_template_read(config.chat),
            )
            await serve(
                backend,
                sock,
                shutdown,
                llm.close,
                ready,
                api_keys=dict.fromkeys(config.api_keys, DEFAULT_TENANT),
                drain_timeout_s=config.drain_timeout_s,
            )
        except Interrupted:
            return
        except (SplitError, ModelError, ValueError) as error:
            raise ServerError(f"the split client cannot start: {error}") from error
        finally:
            await llm.close()
