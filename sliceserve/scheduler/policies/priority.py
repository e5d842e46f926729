"""The urgent first, but not for ever."""

import heapq

from sliceserve.configs import SchedulerConfig
from sliceserve.scheduler.ordering import Queue
from sliceserve.scheduler.policies.policy import ARRIVALS_PER_LEVEL, Policy
from sliceserve.scheduler.request import Rank, Request

# Levels beyond these count as these: nobody buys more than this many levels ahead of anybody.
MAX_LEVEL = 8


def _head_start(request: Request) -> int:
    """How many places later (or, negative, earlier) than its own the request stands."""
    return ARRIVALS_PER_LEVEL * max(-MAX_LEVEL, min(MAX_LEVEL, request.priority))


class Priority(Policy):
    """A lower ``Request.priority`` goes first, then who came first.

    A level is worth ``ARRIVALS_PER_LEVEL`` places: a request is passed by no more than 64·(p − q)
    of those that come after it, p and q being its priority and theirs. That is aging without a
    clock. It holds for waiting and prefill by arrival, and for decodes, when they do not all fit,
    by turn.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        super().__init__(config)
        self.decodes = _UrgentRotation()

    def rank(self, request: Request, arrival: int) -> Rank:
        return (arrival + _head_start(request), arrival)


class _UrgentRotation(Queue):
    """As a rotation, with a place for each turn and a head start for the urgent."""

    def __init__(self) -> None:
        # Entries of those that have gone stay until they come to the top.
        self._heap: list[tuple[int, int, Request]] = []
        self._turns: dict[str, int] = {}
        self._num_turns = 0

    def __len__(self) -> int:
        return len(self._turns)

    def __contains__(self, request: Request) -> bool:
        return request.request_id in self._turns

    def add(self, request: Request) -> None:
        turn = self._num_turns
        self._num_turns += 1
        self._turns[request.request_id] = turn
        heapq.heappush(self._heap, (turn + _head_start(request), turn, request))

    def remove(self, request: Request) -> None:
        del self._turns[request.request_id]

    def first(self) -> Request | None:
        heap = self._heap
        while heap:
            _, turn, request = heap[0]
            if self._turns.get(request.request_id) == turn:
                return request
            heapq.heappop(heap)
        return None
