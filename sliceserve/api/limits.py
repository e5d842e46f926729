"""What each tenant may do, and the one place where it is checked, for HTTP and the split socket.

Keys, models, cuts, rates and the number of sessions are checked here; how many requests a tenant
has at once is the engine's to count, which alone sees those that wait (`max_requests`).
"""

import contextlib
import hashlib
import hmac
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from sliceserve.api.errors import ApiError
from sliceserve.api.usage import Usage
from sliceserve.configs import DEFAULT_TENANT, Keyring, TenantConfig

_MINUTE_S, _DAY_S = 60.0, 86400.0
_ROUNDING_S = 1e-6
# Sessions end when their clients like.
_SESSION_RETRY_S = 5.0


class Rate(NamedTuple):
    """``most`` of ``what`` in ``period_s`` seconds, evenly; what was not used is saved up for as
    long as that."""

    what: str
    most: int
    period_s: float

    def cost(self, num_requests: int, num_tokens: int) -> int:
        """How much of what it bounds these take."""
        return num_requests if self.what == "requests" else num_tokens

    def seconds_until(self, count: int, paid_back: float, now: float) -> float:
        """Until ``count`` more can be had; no more than all that can be saved up is waited for."""
        free_s = self.period_s - max(0.0, paid_back - now)
        wait_s = min(count, self.most) * self.period_s / self.most - free_s
        return wait_s if wait_s > _ROUNDING_S else 0.0

    def left(self, paid_back: float, now: float) -> int:
        """How many more can be had now."""
        free_s = self.period_s - max(0.0, paid_back - now)
        return max(0, int((free_s + _ROUNDING_S) * self.most / self.period_s))

    def charge(self, count: int, paid_back: float, now: float) -> float:
        """When it will have been paid back, with ``count`` more."""
        return max(paid_back, now) + count * self.period_s / self.most


class Account:
    """A tenant at the door. Its methods raise ApiError for what it may not do."""

    def __init__(self, tenant: TenantConfig, usage: Usage) -> None:
        self._usage = usage
        self.limit(tenant)

    def limit(self, tenant: TenantConfig) -> None:
        """From now on it may do what ``tenant`` says."""
        self.tenant = tenant
        self._rates = _rates(tenant)

    @property
    def name(self) -> str:
        return self.tenant.name

    def priority(self, wanted: int) -> int:
        """Of a request that asks for ``wanted``; lower is more urgent."""
        own = self.tenant.priority
        return wanted if own is None else own + max(0, wanted)

    def may_use(self, model: str) -> bool:
        return self.tenant.models is None or model in self.tenant.models

    def expect_model(self, model: str) -> None:
        """403 for a model that the tenant may not use."""
        if not self.may_use(model):
            allowed = _listed(self.tenant.models or ())
            raise ApiError(
                403,
                f"This key may not use the model '{model}'; it may use {allowed}.",
                "model_not_allowed",
                "model",
            )

    def may_enter(self, cut: int) -> bool:
        """Whether its rows may enter at layer ``cut``; 0: with all layers left to the server."""
        return self.tenant.cuts is None or cut in self.tenant.cuts

    def expect_cut(self, cut: int) -> None:
        """403 for a layer at which its rows may not enter."""
        if self.may_enter(cut):
            return
        what = f"enter at layer {cut}" if cut else "leave all layers to the server"
        cuts = _listed([str(cut) for cut in self.tenant.cuts or () if cut])
        raise ApiError(
            403, f"Requests with this key may not {what}; cuts allowed: {cuts}.", "cut_not_allowed"
        )

    def admit(self, num_tokens: int, resumed: bool = False) -> None:
        """Charge a request with a prompt of ``num_tokens``; 429 if a rate does not allow it now.

        One that is ``resumed`` has been let in before, here or elsewhere: it is charged again, but
        refused only once the tenant owes as much as it can save up.
        """
        if not self._rates:
            return
        now = time.monotonic()
        costs = [(i, rate, rate.cost(1, num_tokens)) for i, rate in self._rates]
        with self._usage.times() as paid_back:
            for i, rate, count in costs:
                wait_s = rate.seconds_until(count, paid_back[i], now)
                if wait_s > (rate.period_s if resumed else 0.0):
                    raise _too_fast(self.name, rate, wait_s)
            for i, rate, count in costs:
                paid_back[i] = rate.charge(count, paid_back[i], now)

    def spend(self, num_tokens: int) -> None:
        """Charge tokens of an answer. It is not cut short for them; the next request waits."""
        rates = [(i, rate) for i, rate in self._rates if rate.cost(0, num_tokens)]
        if not rates:
            return
        now = time.monotonic()
        with self._usage.times() as paid_back:
            for i, rate in rates:
                paid_back[i] = rate.charge(num_tokens, paid_back[i], now)

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """A split connection, for as long as it lives; 429 if there are too many."""
        most = self.tenant.max_sessions
        if most is None:
            yield
            return
        place = self._usage.take_session(most)
        if place is None:
            raise ApiError(
                429,
                f"Tenant {self.name} has {most} split sessions, the most allowed; close one.",
                "too_many_sessions",
                retry_after_s=_SESSION_RETRY_S,
            )
        try:
            yield
        finally:
            self._usage.leave_session(place)

    def headers(self) -> dict[str, str]:
        """OpenAI's x-ratelimit-*, of the limits that it has for a minute."""
        headers: dict[str, str] = {}
        now = time.monotonic()
        rates = [(i, rate) for i, rate in self._rates if rate.period_s == _MINUTE_S]
        if not rates:
            return headers
        with self._usage.times() as paid_back:
            times = paid_back[:]
        for i, rate in rates:
            reset_s = max(0.0, times[i] - now)
            headers[f"x-ratelimit-limit-{rate.what}"] = str(rate.most)
            headers[f"x-ratelimit-remaining-{rate.what}"] = str(rate.left(times[i], now))
            headers[f"x-ratelimit-reset-{rate.what}"] = f"{reset_s:.3f}s"
        return headers


class Accounts:
    """All tenants of an endpoint, by their keys, of which it has the digests alone.

    ``usage_of`` makes the usage of a tenant, once for each name. For one event loop.
    """

    def __init__(
        self, keyring: Keyring, usage_of: Callable[[str], Usage] = lambda name: Usage()
    ) -> None:
        self._usage_of = usage_of
        self._accounts: dict[str, Account] = {}
        self.update(keyring)

    @property
    def names(self) -> list[str]:
        """Of all tenants that there have been."""
        return list(self._accounts)

    @property
    def ask_for_keys(self) -> bool:
        return bool(self._digests)

    def update(self, keyring: Keyring) -> None:
        """Other keys and limits from now on. Who is inside keeps its account, with the new limits;
        usage is kept."""
        tenants = {DEFAULT_TENANT: TenantConfig(name=DEFAULT_TENANT)}
        tenants |= {tenant.name: tenant for tenant in keyring.tenants}
        for name, tenant in tenants.items():
            if name in self._accounts:
                self._accounts[name].limit(tenant)
            else:
                self._accounts[name] = Account(tenant, self._usage_of(name))
        self._digests = [
            (digest, self._accounts[name]) for digest, name in keyring.tenant_of_digest.items()
        ]

    def of_key(self, key: str | None) -> Account:
        """Whose key this is; None: no key came. Raises ApiError 401 for one that is not known."""
        if not self._digests:
            return self._accounts[DEFAULT_TENANT]
        given = hashlib.sha256((key or "").encode("latin-1")).digest()
        # All are compared, so that the time taken says nothing about which one came close.
        matches = [one for known, one in self._digests if hmac.compare_digest(given, known)]
        if key is None or not matches:
            problem = "Incorrect API key provided" if key else "You didn't provide an API key"
            raise ApiError(
                401, f"{problem}; send it as 'Authorization: Bearer KEY'", "invalid_api_key"
            )
        return matches[0]


def _rates(tenant: TenantConfig) -> list[tuple[int, Rate]]:
    """Those that it has, each with its place among the times of its usage."""
    rates = (
        ("requests", tenant.requests_per_minute, _MINUTE_S),
        ("tokens", tenant.tokens_per_minute, _MINUTE_S),
        ("tokens", tenant.tokens_per_day, _DAY_S),
    )
    return [
        (i, Rate(what, most, period_s))
        for i, (what, most, period_s) in enumerate(rates)
        if most is not None
    ]


def _too_fast(tenant: str, rate: Rate, wait_s: float) -> ApiError:
    a = "minute" if rate.period_s == _MINUTE_S else "day"
    return ApiError(
        429,
        f"Rate limit reached for tenant {tenant}: {rate.most} {rate.what} a {a}. Try again in "
        f"{wait_s:.1f} s.",
        "rate_limit_exceeded",
        retry_after_s=wait_s,
    )


def _listed(names: "list[str] | tuple[str, ...]") -> str:
    return ", ".join(names) or "none"
