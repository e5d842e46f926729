"""What the scheduler raises."""

from collections.abc import Container, Iterable


class SchedulerError(RuntimeError):
    """The scheduler was used against its contract, or found itself inconsistent."""


class RequestRefused(SchedulerError):
    """A request, or an addition to it, that cannot be served; nothing was changed.

    ``code`` is for programs: "overloaded", "context_length_exceeded" or "invalid_request".
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def expect_live(what: str, kept: Iterable[str], live: Container[str]) -> None:
    """Raise SchedulerError if ``what`` is ``kept`` of requests that are not ``live``."""
    if strays := [request_id for request_id in kept if request_id not in live]:
        raise SchedulerError(f"{what} of requests that have ended are kept: {strays}")
