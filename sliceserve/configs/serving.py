"""Settings of the server around an engine, of a split client, and of a gateway."""

from dataclasses import dataclass, field, replace

from sliceserve.configs.chat import ChatConfig
from sliceserve.configs.codec import CodecConfig
from sliceserve.configs.engine import EngineConfig
from sliceserve.configs.model import ModelConfig
from sliceserve.configs.settings import setting
from sliceserve.configs.tenants import Keyring, TenantConfig
from sliceserve.configs.validation import expect


# Without slots, which two bases of one class cannot both have.
@dataclass(frozen=True, kw_only=True)
class TracesConfig:
    """Where traces go."""

    otlp_traces_endpoint: str | None = setting(
        None,
        "URL of an OpenTelemetry collector that traces go to, by OTLP over HTTP: "
        "http://localhost:4318/v1/traces.",
        "Observability",
        shown="no traces",
    )

    def __post_init__(self) -> None:
        url = self.otlp_traces_endpoint
        holds = url is None or url.startswith(("http://", "https://"))
        expect(holds, "otlp_traces_endpoint", "a URL with http:// or https://", url)


@dataclass(frozen=True, kw_only=True)
class HttpConfig(TracesConfig):
    """An OpenAI endpoint: where it listens, whom it lets in (`Keyring`), how it speaks, how it
    ends."""

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
    api_keys_file: str | None = setting(
        None,
        "YAML or JSON with more api_keys and tenants, read again at SIGHUP; see docs/operating.md.",
        "Security",
        shown="none",
    )
    tenants: tuple[TenantConfig, ...] = setting(
        (),
        "Clients with keys, shares and limits of their own, as a list in YAML; see "
        "docs/operating.md.",
        "Security",
        shown="none",
    )
    ssl_certfile: str | None = setting(
        None,
        "The certificate, with its chain, in PEM; clients then come by https and wss.",
        "Security",
        shown="no TLS",
    )
    ssl_keyfile: str | None = setting(
        None, "Its private key in PEM.", "Security", shown="in the certificate's file"
    )
    allowed_origins: tuple[str, ...] = setting(
        (),
        "Where web pages come from whose scripts may ask, * for anywhere (CORS); repeatable.",
        "Security",
        shown="nowhere",
    )
    allow_credentials: bool = setting(False, "CORS: let pages send cookies along.", "Security")
    allowed_methods: tuple[str, ...] = setting(
        ("*",), "CORS: methods that pages may use.", "Security", shown="*"
    )
    allowed_headers: tuple[str, ...] = setting(
        ("*",), "CORS: headers that pages may send.", "Security", shown="*"
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
    max_metric_tenants: int = setting(
        20, "Tenants that /metrics tells apart, the first; the others are one.", "Observability"
    )
    dashboard: bool = setting(True, "Show people at /dashboard how it is doing.", "Network")

    def __post_init__(self) -> None:
        super().__post_init__()
        # A socket takes a larger number modulo 65536, without a word.
        expect(0 <= self.port <= 65535, "port", "0 to 65535", self.port)
        most = self.max_metric_tenants
        expect(most >= 0, "max_metric_tenants", "0 or more", most)
        drain = self.drain_timeout_s
        expect(drain >= 0, "drain_timeout_s", "0 seconds or more", drain)
        needless = self.ssl_keyfile if self.ssl_certfile is None else None
        expect(needless is None, "ssl_keyfile", "given with ssl_certfile", needless)
        _ = self.keyring

    @property
    def keyring(self) -> Keyring:
        """Whom the endpoint lets in, but for those that are named in the file."""
        return Keyring(api_keys=self.api_keys, tenants=self.tenants)


@dataclass(frozen=True, kw_only=True)
class ServerConfig(HttpConfig):
    """`sliceserve serve`: an engine, and the endpoint before it."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    api_workers: int = setting(
        1, "Processes that hold the clients' connections; more where one is always busy.", "Network"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.api_workers >= 1, "api_workers", "at least 1", self.api_workers)

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
class ClientConfig(Patience, TracesConfig):
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
    ssl_ca_certs: str | None = setting(
        None,
        "Certificates in PEM of those whose word for the server counts, in place of the system's.",
        "Security",
        shown="the system's",
    )
    prefix_cache: bool = setting(
        True, "Keep what has been computed and sent for requests that begin alike.", "Memory"
    )

    def __post_init__(self) -> None:
        Patience.__post_init__(self)
        TracesConfig.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class GatewayConfig(ClientConfig, HttpConfig):
    """`sliceserve gateway`: a split client, and the endpoint before it.

    Its tenants have keys and rates. What needs an engine that serves them is the server's.
    """

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
        ClientConfig.__post_init__(self)
        HttpConfig.__post_init__(self)
        for tenant in self.tenants:
            for name in ("max_requests", "max_sessions", "cuts"):
                expect(
                    getattr(tenant, name) is None,
                    f"{name} of tenant {tenant.name}",
                    "set on the server, not on a gateway",
                    getattr(tenant, name),
                )
