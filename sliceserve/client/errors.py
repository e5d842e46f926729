"""What can go wrong for a split client. ``except SplitError`` catches all of it."""

from sliceserve.engine.generation import GenerationError

# The server, or the tenant whose key this is, has as much as it may; others end.
FULL = frozenset({"overloaded", "rate_limit_exceeded", "too_many_sessions"})
# Refusals that the same attempt can outlive.
_PASSING = FULL | {"unreachable", "draining", "engine_dead"}
_PASSING_REQUESTS = _PASSING | {"server_unreachable", "timeout"}


class SplitError(RuntimeError):
    """Base of every error of the split client; the message says what to do about it."""


class ConnectionRefused(SplitError):
    """The server is not there, or does not let this client in.

    ``code`` is for programs: "unreachable", "unauthorized", "overloaded", "draining",
    "fingerprint_mismatch", …; ``retry_after_s`` is what the server asked to wait.
    """

    def __init__(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def may_retry(self) -> bool:
        """Whether the same attempt can succeed later."""
        return self.code in _PASSING


class RequestFailed(GenerationError, SplitError):
    """One request that was refused or failed; ``code`` and ``retry_after_s`` as in
    GenerationError."""

    @property
    def may_retry(self) -> bool:
        """Whether the same request can succeed later. Begun anew, it is another request: one with
        a temperature and no seed gets another answer."""
        return self.code in _PASSING_REQUESTS


class RequestTimeout(RequestFailed):
    """The server owed an answer for too long, or the call's own time was over; ``code`` is
    "timeout"."""

    def __init__(self, message: str) -> None:
        super().__init__("timeout", message)
