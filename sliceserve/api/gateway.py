"""`sliceserve gateway`, without its command line."""

from collections.abc import Callable

from sliceserve.api.backend import Backend
from sliceserve.api.hosting import serve
from sliceserve.api.limits import Accounts
from sliceserve.api.listening import ServerError, bind, expect_certificate
from sliceserve.api.shutdown import Interrupted, Shutdown, on_hangup
from sliceserve.client.errors import SplitError
from sliceserve.client.sdk import AsyncSplitLLM
from sliceserve.configs import GatewayConfig
from sliceserve.configs.key_file import with_key_file
from sliceserve.models.chat_template import with_template_read
from sliceserve.models.errors import ModelError


async def run_gateway(
    config: GatewayConfig, ready: Callable[[str], None] = lambda url: None
) -> None:
    """Offer the OpenAI routes on the device, with a split client behind them. Otherwise as
    `run_server`. Raises ConfigError for a file of keys that cannot be used."""
    accounts = Accounts(with_key_file(config).keyring)
    expect_certificate(config)
    with Shutdown.on_signals() as shutdown, bind(config.host, config.port) as sock:
        llm = AsyncSplitLLM(config=config)
        try:
            if config.api_keys_file is not None:
                on_hangup(lambda: accounts.update(with_key_file(config).keyring))
            await shutdown.guard(llm.start())
            backend = Backend(
                models=(config.served_model_name or llm.generator.welcome.model,),
                fingerprint=llm.head.info.fingerprint,
                tokenizer=llm.tokenizer,
                generator=llm.generator,
                engine=None,
                stats=llm.head.stats,
                session=lambda: llm.stats,
                tracing=llm.generator.tracing,
                chat=with_template_read(config.chat),
            )
            await serve(
                backend,
                sock,
                shutdown,
                llm.close,
                ready,
                http=config,
                accounts=accounts,
            )
        except Interrupted:
            return
        except (SplitError, ModelError, ValueError) as error:
            raise ServerError(f"the split client cannot start: {error}") from error
        finally:
            await llm.close()
