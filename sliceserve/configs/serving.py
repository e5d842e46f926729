"""Settings of the server around an engine, and of a split client."""

from collections import Counter
from dataclasses import dataclass, field, replace

from sliceserve.configs.codec import CodecConfig
from sliceserve.configs.engine import EngineConfig
from sliceserve.configs.model import ModelConfig
from sliceserve.configs.validation import expect, secret

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
    api_keys: tuple[str, ...] = secret(())
    weight: float = 1.0
    max_requests: int | None = None

    def __post_init__(self) -> None:
        expect(bool(self.name), "name of a tenant", "a text", repr(self.name))
        expect(all(self.api_keys), f"api_keys of tenant {self.name}", "not empty", "an empty one")
        weight = self.weight
        expect(0.001 <= weight <= 1000, "weight of a tenant", "0.001 to 1000", weight)
        limit = self.max_requests
        expect(limit is None or limit >= 1, "max_requests of a tenant", "at least 1", limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """`sliceserve serve`: where it listens, whom it lets in, how it ends.

    ``tenants`` are told apart by their keys. ``api_keys`` are those of the tenant "default", which
    need not be among them. Without any key everybody may enter, and is "default".
    ``served_model_name`` is what /v1/models shows; None is the model's own name.
    ``drain_timeout_s`` is how long live requests may go on after SIGTERM.
    ``api_workers`` processes share the connections of clients; the engine has one of its own.
    """

    engine: EngineConfig = field(default_factory=EngineConfig)
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = secret(())
    tenants: tuple[TenantConfig, ...] = ()
    served_model_name: str | None = None
    drain_timeout_s: float = 30.0
    api_workers: int = 1

    def __post_init__(self) -> None:
        # A socket takes a larger number modulo 65536, without a word.
        expect(0 <= self.port <= 65535, "port", "0 to 65535", self.port)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """A split client: the server, the cut, the codec, and patience.

    ``split`` is the number of layers that run here; None takes the middle one of the cuts that
    the server offers. ``timeout_s`` bounds the wait for one answer of the server,
    ``resume_timeout_s`` the time spent to get a lost connection back. With ``prefix_cache`` what
    earlier requests have computed stays in the KV cache until others need the room, and a request
    that begins with the same tokens neither computes it again nor sends what the server has still.
    """

    server: str = "http://127.0.0.1:8000"
    model: ModelConfig = field(default_factory=ModelConfig)
    split: int | None = None
    codec: CodecConfig = field(default_factory=CodecConfig)
    api_key: str | None = secret(None)
    timeout_s: float = 60.0
    resume_timeout_s: float = 30.0
    prefix_cache: bool = True
