"""Where the time of requests and of their tokens goes, in one engine."""

from collections.abc import Container, Iterable

from sliceserve.engine.distribution import Distribution
from sliceserve.engine.messages import PathStats, TokenTimes
from sliceserve.scheduler.errors import expect_live
from sliceserve.scheduler.plan import ScheduledRequest
from sliceserve.scheduler.request import Request

# From a decode's part of a step to a prompt that waits for memory.
_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600,
)  # fmt: skip


def _new_stats() -> PathStats:
    return PathStats(
        token_times=TokenTimes(),
        queue_seconds=Distribution.over(_SECONDS),
        prefill_seconds=Distribution.over(_SECONDS),
        decode_seconds=Distribution.over(_SECONDS),
        inference_seconds=Distribution.over(_SECONDS),
    )


class _Course:
    """Of one request. ``ready_at``: since when there has been something to compute; ``started_at``:
    since when a step has had some of it; None while its client is to say more. ``waited_s`` for
    admission, None before it."""

    __slots__ = (
        "began_at",
        "first_token_at",
        "last_token_at",
        "opened_at",
        "path",
        "ready_at",
        "started_at",
        "waited_s",
    )

    def __init__(self, path: str, now: float) -> None:
        self.path = path
        self.opened_at = now
        self.waited_s: float | None = None
        self.ready_at: float | None = None
        self.started_at: float | None = None
        self.began_at: float | None = None
        self.first_token_at: float | None = None
        self.last_token_at = now


class Timekeeper:
    """Follows each request from its opening to its end. Times are `time.monotonic` seconds.

    What a request waits for is told by what it has: before admission, and with pending tokens but
    no step, it is queued; from the first step that has some of these until the token it is
    computed, other requests' rows and a replay after a preemption included; the rest is its
    client's time, which nobody counts here.
    """

    def __init__(self) -> None:
        self._courses: dict[str, _Course] = {}
        self._paths = {"thin": _new_stats(), "split": _new_stats()}

    @property
    def paths(self) -> dict[str, PathStats]:
        return self._paths

    def open(self, request: Request, now: float) -> None:
        path = "thin" if request.entry_layer == 0 else "split"
        self._courses[request.request_id] = _Course(path, now)

    def admit(self, request: Request, now: float) -> None:
        """The request may go on, for the first time or again."""
        course = self._courses[request.request_id]
        if course.waited_s is None:
            course.waited_s = now - course.opened_at

    def note_ready(self, request: Request, now: float) -> None:
        """More of the request may be known than was."""
        course = self._courses[request.request_id]
        if course.ready_at is None and request.num_pending > 0:
            course.ready_at = now

    def start(self, scheduled: Iterable[ScheduledRequest], now: float) -> None:
        """A step begins."""
        for part in scheduled:
            course = self._courses[part.request_id]
            if course.started_at is None:
                course.started_at = now
                if course.began_at is None:
                    course.began_at = now

    def finish(self, request: Request, exit_s: float, is_token: bool, now: float) -> TokenTimes:
        """What was ready is a token, or packets of a head, since the step that ends ``now``, of
        which the sampling or encoding took ``exit_s``. The times of it."""
        course = self._courses[request.request_id]
        ready_at = now if course.ready_at is None else course.ready_at
        started_at = ready_at if course.started_at is None else course.started_at
        queue_s = max(0.0, started_at - ready_at)
        if course.waited_s is not None:
            queue_s += course.waited_s
            course.waited_s = 0.0
        times = TokenTimes(1, queue_s, max(0.0, now - started_at - exit_s), exit_s)
        if is_token:
            self._count(request, course, times, now)
        course.ready_at = now if request.num_pending > 0 else None
        course.started_at = None
        return times

    def end(self, request_id: str) -> None:
        """The request has ended, however it did."""
        course = self._courses.pop(request_id, None)
        if course is None or course.first_token_at is None or course.began_at is None:
            return
        stats = self._paths[course.path]
        stats.decode_seconds.add(course.last_token_at - course.first_token_at)
        stats.inference_seconds.add(course.last_token_at - course.began_at)

    def check(self, live: Container[str]) -> None:
        """Raise SchedulerError if anything is kept of requests that are not ``live``."""
        expect_live("times", self._courses, live)

    def _count(self, request: Request, course: _Course, times: TokenTimes, now: float) -> None:
        course.last_token_at = now
        stats = self._paths[course.path]
        if course.first_token_at is not None:
            stats.token_times = stats.token_times.plus(times)
            return
        course.first_token_at = now
        # One that was begun elsewhere has its first token from there.
        if len(request.outputs) == 1:
            stats.queue_seconds.add(times.queue_s)
            stats.prefill_seconds.add(times.layers_s + times.exit_s)
