"""Who may use a server: keys, the tenants that they stand for, and what these may do."""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass

from sliceserve.configs.settings import setting
from sliceserve.configs.validation import expect

# Whose requests are, when no tenant's key came with them.
DEFAULT_TENANT = "default"

_HASHED = "sha256:"
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_AT_LEAST_ONE = (
    "max_requests",
    "max_sessions",
    "requests_per_minute",
    "tokens_per_minute",
    "tokens_per_day",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantConfig:
    """Clients on one account: whoever comes with one of ``api_keys``, each the key itself or
    ``sha256:`` and the 64 hex digits of its digest.

    ``weight`` is its share of the server beside the other tenants', where the policy is fair share.
    ``priority`` is that of its requests, which they can make less urgent, not more; None leaves it
    to them. At once it may have ``max_requests`` admitted and ``max_sessions`` split connections.
    In the mean it may ask for ``requests_per_minute``, and for the tokens of prompts and answers
    that the others say. ``cuts`` are where its rows may enter, 0 standing for requests that leave
    all layers to the server; ``models`` the names that it may ask for. None: no limit of its own.
    """

    name: str
    api_keys: tuple[str, ...] = setting((), secret=True)
    weight: float = 1.0
    priority: int | None = None
    max_requests: int | None = None
    max_sessions: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    cuts: tuple[int, ...] | None = None
    models: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        expect(bool(self.name), "name of a tenant", "a text", repr(self.name))
        whose = f"of tenant {self.name}"
        for key in self.api_keys:
            expect_key(key, whose)
        expect(0.001 <= self.weight <= 1000, f"weight {whose}", "0.001 to 1000", self.weight)
        for name in _AT_LEAST_ONE:
            limit = getattr(self, name)
            expect(limit is None or limit >= 1, f"{name} {whose}", "at least 1", limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyring:
    """All keys of an endpoint. ``api_keys`` are those of the tenant "default", which need not be
    among the ``tenants``. Without any key everybody may enter, and is "default"."""

    api_keys: tuple[str, ...] = setting((), secret=True)
    tenants: tuple[TenantConfig, ...] = ()

    def __post_init__(self) -> None:
        for key in self.api_keys:
            expect_key(key, "")
        names = Counter(tenant.name for tenant in self.tenants)
        twice = [name for name, count in names.items() if count > 1]
        expect(not twice, "names of tenants", "different", f"{', '.join(twice)} twice")
        keyless = [t.name for t in self.tenants if not t.api_keys and t.name != DEFAULT_TENANT]
        expect(not keyless, "tenants", "given api_keys", f"none for {', '.join(keyless)}")
        keys = [*self.api_keys, *(key for t in self.tenants for key in t.api_keys)]
        digests = Counter(map(key_digest, keys))
        expect(all(n == 1 for n in digests.values()), "api_keys", "different", "one of them twice")

    def __add__(self, other: "Keyring") -> "Keyring":
        return Keyring(
            api_keys=self.api_keys + other.api_keys, tenants=self.tenants + other.tenants
        )

    @property
    def tenant_of_digest(self) -> dict[bytes, str]:
        """The name of the tenant that the key with each digest stands for; empty lets all in."""
        names = {key: tenant.name for tenant in self.tenants for key in tenant.api_keys}
        names |= dict.fromkeys(self.api_keys, DEFAULT_TENANT)
        return {key_digest(key): name for key, name in names.items()}


def key_digest(key: str) -> bytes:
    """The sha256 of a key that is given as it is, or as ``sha256:`` and hex digits."""
    if key.startswith(_HASHED):
        return bytes.fromhex(key.removeprefix(_HASHED))
    return hashlib.sha256(key.encode()).digest()


def expect_key(key: str, whose: str) -> None:
    """Raise ValueError, which does not show it, for a key that nobody can come with."""
    is_hashed = key.startswith(_HASHED)
    expect(
        _DIGEST.fullmatch(key.removeprefix(_HASHED)) is not None if is_hashed else bool(key),
        f"api_keys {whose}".strip(),
        "not empty, and after sha256: 64 hex digits",
        "something else",
    )
