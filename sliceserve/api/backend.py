"""What the API serves: a server's own engine, or a split client on a device."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from sliceserve.api.errors import ApiError, invalid
from sliceserve.api.protocol import GenerationRequest
from sliceserve.client.stats import SessionStats
from sliceserve.configs import ChatConfig
from sliceserve.engine.client import EngineClient
from sliceserve.engine.generation import Generator
from sliceserve.engine.messages import EngineStats
from sliceserve.models.tokenizer import Tokenizer
from sliceserve.tracing import Tracing


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """``models`` are the names it answers to, the first being its own. ``generator`` is None where
    an engine lacks the first layers, so that only split clients can use it. ``engine`` is what
    split clients connect to; None on a gateway. ``stats`` asks the engine of this machine, and
    raises EngineDead when that is gone. ``session`` tells what a gateway has sent to its server.
    ``chat`` says how chats are wanted; its template has been read. ``tracing``, which is its
    owner's to close, gets a span for each request."""

    models: tuple[str, ...]
    fingerprint: str
    tokenizer: Tokenizer
    generator: Generator | None
    engine: EngineClient | None
    stats: Callable[[], Awaitable[EngineStats]]
    session: Callable[[], SessionStats] | None = None
    chat: ChatConfig = field(default_factory=ChatConfig)
    tracing: Tracing | None = None

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and answer together."""
        if self.generator is not None:
            return self.generator.max_model_len
        assert self.engine is not None
        return self.engine.info.max_model_len

    def expect_model(self, name: str) -> None:
        """Raise ApiError 404 for a model that is not served here."""
        if name not in self.models:
            raise ApiError(
                404,
                f"The model '{name}' does not exist; this server has {', '.join(self.models)}.",
                "model_not_found",
                "model",
            )

    def expect_to_generate(self, request: GenerationRequest) -> None:
        """Raise ApiError for a request that is not for this server, or makes no sense."""
        self.expect_model(request.model)
        self.expect_generator()
        try:
            request.expect_consistent()
        except ValueError as error:
            raise invalid(str(error)) from error

    def expect_generator(self) -> Generator:
        """Raise ApiError 400 where text needs a split client."""
        if self.generator is None:
            raise ApiError(
                400,
                "This server runs the upper layers of the model only. Generate text with a split "
                "client: `sliceserve gateway` offers this API on the device, SplitLLM is the "
                "Python SDK.",
                "split_client_required",
            )
        return self.generator
