"""What the scheduler raises."""


class SchedulerError(RuntimeError):
    """The scheduler was used against its contract, or found itself inconsistent."""


class RequestRefused(SchedulerError):
    """A request, or an addition to it, that cannot be served; nothing was changed.

    ``code`` is for programs: "overloaded", "context_length_exceeded" or "invalid_request".
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
