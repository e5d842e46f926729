"""Settings of the server around an engine, and of a split client."""

from dataclasses import dataclass, field

from sliceserve.configs.codec import CodecConfig
from sliceserve.configs.engine import EngineConfig
from sliceserve.configs.model import ModelConfig
from sliceserve.configs.validation import expect


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """`sliceserve serve`: where it listens, whom it lets in, how it ends.

    ``api_keys`` empty lets everybody in. ``served_model_name`` is what /v1/models shows; None is
    the model's own name. ``drain_timeout_s`` is how long live requests may go on after SIGTERM.
    """

    engine: EngineConfig = field(default_factory=EngineConfig)
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    served_model_name: str | None = None
    drain_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        # A socket takes a larger number modulo 65536, without a word.
        expect(0 <= self.port <= 65535, "port", "0 to 65535", self.port)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """A split client: the server, the cut, the codec, and patience.

    ``split`` is the number of layers that run here; None takes the middle one of the cuts that
    the server offers. ``timeout_s`` bounds the wait for one answer of the server,
    ``resume_timeout_s`` the time spent to get a lost connection back.
    """

    server: str = "http://127.0.0.1:8000"
    model: ModelConfig = field(default_factory=ModelConfig)
    split: int | None = None
    codec: CodecConfig = field(default_factory=CodecConfig)
    api_key: str | None = None
    timeout_s: float = 60.0
    resume_timeout_s: float = 30.0
