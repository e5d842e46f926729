"""Settings of the server around an engine, of a split client, and of a gateway."""

from collections import Counter
from dataclasses import dataclass, field, replace

from sliceserve.configs.chat import ChatConfig
from sliceserve.configs.codec import CodecConfig
from sliceserve.configs.engine import EngineConfig
from sliceserve.configs.model import ModelConfig
from sliceserve.configs.settings import setting
from sliceserve.configs.validation import expect

# Whose requests are, when no tenant's key came with them.
DEFAULT_TENANT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantConfig:
    """Clients on one account: whoever comes with one of ``api_keys``.

    ``weight`` is its share of the server beside the other tenants', where the policy is fair share.
    ``max_requests`` is how many of its requests may be admitted at once; None leaves it to the
    server's own limit.
    """

    name: str
    api_keys: tuple[str, ...] = setting((), secret=True)
    weight: float = 1.0
    max_requests: int | None = None

    def __post_init__(self) -> None:
        expect(bool(self.name), "name of a tenant", "a text", repr(self.name))
        expect(all(self.api_keys), f"api_keys of tenant {self.name}", "not empty", "an empty one")
        weight = self.weight
        expect(0.001 <= weight <= 1000, "weight of a tenant", "0.001 to 1000", weight)
        limit = self.max_requests
        expect(limit is None or limit >= 1, "max_requests of a tenant", "at least 1", limit)


# Without slots, which two bases of one class cannot both have.
@dataclass(frozen=True, kw_only=True)
class HttpConfig:
    """An OpenAI endpoint: where it listens, whom it lets in, how it speaks, how it ends."""

    chat: ChatConfig = field(default_factory=ChatConfig)
    host: str = setting(
        "127.0.0.1", "Address to listen on; 0.0.0.0 lets other machines in.", "Network"
    )
    port: int = setting(8000, "Port to listen on; 0 takes a free one.", "Network")
    api_keys: tuple[str, ...] = setting(
        (),
        "A key that lets clients in; repeatable, and safer in SLICESERVE_API_KEYS.",
        "Security",
        flag="api-key",
        shown="all are let in",
        secret=True,
    )
    served_model_name: str | None = setting(
        None, "The model's name in the API.", "Network", shown="the model's own"
    )
    drain_timeout_s: float = setting(
        30.0,
        "Seconds that live requests may go on after SIGTERM.",
        "Network",
        flag="drain-timeout",
    )

    def __post_init__(self) -> None:
        # A socket takes a larger number modulo 65536, without a word.
        expect(0 <= self.port <= 65535, "port", "0 to 65535", self.port)
        drain = self.drain_timeout_s
        expect(drain >= 0, "drain_timeout_s", "0 seconds or more", drain)


@dataclass(frozen=True, kw_only=True)
class ServerConfig(HttpConfig):
    """`sliceserve serve`: an engine, and the endpoint before it.

    ``tenants`` are told apart by their keys. ``api_keys`` are those of the tenant "default", which
    need not be among them. Without any key everybody may enter, and is "default".
    """

    engine: EngineConfig = field(default_factory=EngineConfig)
    tenants: tuple[TenantConfig, ...] = setting(
        (),
        "Clients with keys, shares and limits of their own, as a list in YAML; see "
        "docs/operating.md.",
        "Security",
        shown="none",
    )
    api_workers: int = setting(
        1, "Processes that hold the clients' connections; more where one is always busy.", "Network"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.api_workers >= 1, "api_workers", "at least 1", self.api_workers)
        names = Counter(tenant.name for tenant in self.tenants)
        twice = [name for name, count in names.items() if count > 1]
        expect(not twice, "names of tenants", "different", f"{', '.join(twice)} twice")
        keyless = [t.name for t in self.tenants if not t.api_keys and t.name != DEFAULT_TENANT]
        expect(not keyless, "tenants", "given api_keys", f"none for {', '.join(keyless)}")
        keys = Counter([*self.api_keys, *(key for t in self.tenants for key in t.api_keys)])
        expect(all(n == 1 for n in keys.values()), "api_keys", "different", "one of them twice")

    @property
    def tenant_of_key(self) -> dict[str, str]:
        """The name of the tenant that each key stands for; empty lets everybody in."""
        tenants = {key: tenant.name for tenant in self.tenants for key in tenant.api_keys}
        return dict.fromkeys(self.api_keys, DEFAULT_TENANT) | tenants

    @property
    def engine_for_tenants(self) -> EngineConfig:
        """``engine``, which is told of the tenants what its scheduler must know."""
        limits = {t.name: t.max_requests for t in self.tenants if t.max_requests is not None}
        weights = {t.name: t.weight for t in self.tenants}
        given = self.engine.scheduler
        scheduler = replace(
            given,
            tenant_weights=given.tenant_weights | weights,
            tenant_max_requests=given.tenant_max_requests | limits,
        )
        return replace(self.engine, scheduler=scheduler)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a split client waits. Pauses between attempts to connect are drawn by chance, and
    grow."""

    connect_timeout_s: float = setting(
        20.0, "Seconds that one attempt to connect may take.", "Patience", flag="connect-timeout"
    )
    max_retries: int = setting(
        2, "How often a first connection that fails in passing is tried again.", "Patience"
    )
    timeout_s: float = setting(
        60.0, "Seconds to wait for one answer of the server.", "Patience", flag="timeout"
    )
    resume_timeout_s: float = setting(
        30.0,
        "Seconds to spend on getting a lost connection back.",
        "Patience",
        flag="resume-timeout",
    )

    def __post_init__(self) -> None:
        for name in ("connect_timeout_s", "timeout_s"):
            expect(getattr(self, name) > 0, name, "above 0 seconds", getattr(self, name))
        resume = self.resume_timeout_s
        expect(resume >= 0, "resume_timeout_s", "0 seconds or more", resume)
        expect(self.max_retries >= 0, "max_retries", "0 or more", self.max_retries)


@dataclass(frozen=True, kw_only=True)
class ClientConfig(Patience):
    """A split client: the server, the cut, the codec, and patience.

    With ``prefix_cache`` what earlier requests have computed stays in the KV cache until others
    need the room, and a request that begins with the same tokens neither computes it again nor
    sends what the server has still.
    """

    server: str = setting("http://127.0.0.1:8000", "Where `sliceserve serve` runs.", "Network")
    model: ModelConfig = field(default_factory=ModelConfig)
    split: int | None = setting(
        None,
        "How many layers run here: one of the cuts that the server offers.",
        "Split",
        shown="the middle one",
    )
    codec: CodecConfig = field(default_factory=CodecConfig)
    api_key: str | None = setting(
        None,
        "The server's key; safer in SLICESERVE_API_KEY.",
        "Security",
        shown="none",
        secret=True,
    )
    prefix_cache: bool = setting(
        True, "Keep what has been computed and sent for requests that begin alike.", "Memory"
    )


@dataclass(frozen=True, kw_only=True)
class GatewayConfig(ClientConfig, HttpConfig):
    """`sliceserve gateway`: a split client, and the endpoint before it."""

    port: int = setting(8001, "Port to listen on; 0 takes a free one.", "Network")
    api_keys: tuple[str, ...] = setting(
        (),
        "A key that lets programs in; repeatable, and safer in SLICESERVE_API_KEYS.",
        "Security",
        flag="gateway-key",
        shown="all are let in",
        secret=True,
    )
    served_model_name: str | None = setting(
        None, "The model's name in the API.", "Network", shown="the server's name for it"
    )

    def __post_init__(self) -> None:
        Patience.__post_init__(self)
        HttpConfig.__post_init__(self)
