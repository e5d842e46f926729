"""How soon a full engine has room again, from how fast requests have ended."""

from collections import Counter
from collections.abc import Iterable

# The weight of the newest interval in the mean.
_NEWEST = 0.1
_SHORTEST_S, _LONGEST_S = 1.0, 600.0


class Turnover:
    """Learns the mean time between two ends of requests, while there are any.

    Times are `time.monotonic` seconds.
    """

    def __init__(self) -> None:
        self._mean_s: float | None = None
        # The last end, or the first beginning after a time without requests.
        self._since: float | None = None

    def begin(self, now: float) -> None:
        """A request has come in."""
        if self._since is None:
            self._since = now

    def end(self, now: float, is_last: bool) -> None:
        """A request has ended; ``is_last``: no other is left."""
        if self._since is not None:
            interval = now - self._since
            mean = interval if self._mean_s is None else self._mean_s
            self._mean_s = mean + _NEWEST * (interval - mean)
        self._since = None if is_last else now

    def seconds_for(self, num_ends: int, now: float) -> float:
        """When so many more requests may have ended, within reasonable bounds: 1 s to 10 minutes.

        While none has ever ended, the time that they have taken so far stands for the mean.
        """
        mean = self._mean_s
        if mean is None:
            mean = 0.0 if self._since is None else now - self._since
        return min(_LONGEST_S, max(_SHORTEST_S, num_ends * mean))


class Turnovers:
    """Of all requests, and of those of each tenant in ``tenants``: who has a limit of its own waits
    for its own requests to end, however fast those of others do."""

    def __init__(self, tenants: Iterable[str]) -> None:
        self._turnovers: dict[str | None, Turnover] = {tenant: Turnover() for tenant in tenants}
        self._turnovers[None] = Turnover()
        self._num_live: Counter[str | None] = Counter()

    def begin(self, tenant: str, now: float) -> None:
        """A request of ``tenant`` has come in."""
        for whose in self._counted(tenant):
            self._num_live[whose] += 1
            self._turnovers[whose].begin(now)

    def end(self, tenant: str, now: float) -> None:
        """A request of ``tenant`` has ended."""
        for whose in self._counted(tenant):
            self._num_live[whose] -= 1
            self._turnovers[whose].end(now, is_last=self._num_live[whose] == 0)

    def seconds_for(self, tenant: str | None, num_ends: int, now: float) -> float:
        """As `Turnover.seconds_for`, for requests of ``tenant``, or of anybody (None)."""
        return self._turnovers[tenant].seconds_for(num_ends, now)

    def _counted(self, tenant: str) -> tuple[str | None, ...]:
        return (tenant, None) if tenant in self._turnovers else (None,)
