"""What a predictive codec carries from step to step: the last decoded state of each request."""

from collections.abc import Container, Sequence

from sliceserve.codec.base import Run
from sliceserve.scheduler.errors import SchedulerError
from sliceserve.scheduler.plan import ScheduledRequest


class DecodedStates:
    """States by request id, each with the position that it belongs before.

    A step counts as a whole or not at all: what its runs have become is kept by ``end_step``.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[int, Run]] = {}
        self._step: dict[str, tuple[int, Run]] = {}

    def begin_step(self) -> None:
        self._step = {}

    def run(
        self, request: ScheduledRequest, start: int, num_rows: int, token_ids: Sequence[int] = ()
    ) -> Run:
        """A run of ``num_rows`` rows of ``request`` from position ``start`` on. Raises
        SchedulerError unless the row before it was the last one of a run that was kept."""
        run = Run(num_rows, token_ids)
        if start > 0:
            position, before = self._kept.get(request.request_id, (0, None))
            if before is None or position != start:
                raise SchedulerError(
                    f"request {request.request_id} goes on at position {start}, but the state "
                    f"before position {position} is what is kept"
                )
            run.previous = before.previous
        self._step[request.request_id] = (start + num_rows, run)
        return run

    def end_step(self) -> None:
        self._kept |= self._step

    def forget(self, request_id: str) -> None:
        self._kept.pop(request_id, None)

    def check(self, live: Container[str]) -> None:
        """Raise SchedulerError if a state is kept of a request that is not ``live``."""
        if dead := [request_id for request_id in self._kept if request_id not in live]:
            raise SchedulerError(f"states are kept of requests that are gone: {dead}")
