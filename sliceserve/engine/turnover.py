"""How soon a full engine has room again, from how fast requests have ended."""

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
