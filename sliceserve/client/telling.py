"""When a client tells its server where the time of tokens went, and what."""

from sliceserve.client.stats import TokenParts
from sliceserve.transport.messages import Times

# Often enough to be drawn, seldom enough to cost nothing.
_INTERVAL_S = 5.0


class TimesTeller:
    """Keeps what has been told. Times are `time.monotonic` seconds."""

    def __init__(self) -> None:
        self._told = TokenParts()
        self._due_at = 0.0

    def hurry(self) -> None:
        """A request has ended; there may be no other for long."""
        self._due_at = 0.0

    def is_due(self, now: float) -> bool:
        return now >= self._due_at

    def tell(self, parts: TokenParts, now: float) -> Times | None:
        """What is new in ``parts``, the sums over all requests; None if nothing is."""
        news = parts - self._told
        self._told, self._due_at = parts, now + _INTERVAL_S
        if news.num_tokens == 0:
            return None
        return Times(
            num_tokens=news.num_tokens,
            head_us=round(1e6 * news.head_s),
            encode_us=round(1e6 * news.encode_s),
            link_us=round(1e6 * news.link_s),
        )
