"""Orders that requests stand in."""

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Iterator

from sliceserve.scheduler.request import Rank, Request
from sliceserve.scheduler.step import Step


class Queue(ABC):
    """A set of requests, one of which is next. ``first`` may change with every call. None is added
    that is in it."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __contains__(self, request: Request) -> bool: ...

    @abstractmethod
    def add(self, request: Request) -> None: ...

    @abstractmethod
    def remove(self, request: Request) -> None:
        """The request is here."""

    @abstractmethod
    def first(self) -> Request | None: ...

    def take(self, step: Step) -> Iterator[Request]:
        """Take out the first, again and again, while ``step`` has room. One that is put back did
        not fit, and nobody passes it."""
        while step.has_room and (request := self.first()) is not None:
            request.leave_queue()
            yield request
            # Most have been served, and are in no queue.
            if request.queue is not None and request in self:
                return


class ByRank(Queue):
    """Sorted by rank.

    Adding and removing cost a binary search and one move of pointers: microseconds at 10,000
    requests, and they happen when a request changes its state, not at each of its steps.
    """

    def __init__(self) -> None:
        self._ranks: list[Rank] = []
        self._requests: dict[Rank, Request] = {}

    def __len__(self) -> int:
        return len(self._ranks)

    def __contains__(self, request: Request) -> bool:
        return request.rank in self._requests

    def add(self, request: Request) -> None:
        if request.rank not in self._requests:
            insort(self._ranks, request.rank)
            self._requests[request.rank] = request

    def remove(self, request: Request) -> None:
        del self._requests[request.rank]
        del self._ranks[bisect_left(self._ranks, request.rank)]

    def discard(self, request: Request) -> bool:
        """Remove the request if it is here; say whether it was."""
        is_here = request in self
        if is_here:
            self.remove(request)
        return is_here

    def first(self) -> Request | None:
        return self._requests[self._ranks[0]] if self._ranks else None

    def latest_first(self) -> Iterator[Request]:
        for rank in reversed(self._ranks):
            yield self._requests[rank]


class Rotation(Queue):
    """In the order of adding: who has been served joins again at the end.

    Most of a step's requests come this way, one after the other from all over the memory; so the
    order itself lies in one piece, and who leaves before its turn is skipped when that has come.
    """

    def __init__(self) -> None:
        self._requests: deque[Request] = deque()
        # Of a request that has left, so many of its first entries are void.
        self._void: Counter[Request] = Counter()
        self._num_void = 0

    def __len__(self) -> int:
        return len(self._requests) - self._num_void

    def __contains__(self, request: Request) -> bool:
        return self._requests.count(request) > self._void[request]

    def add(self, request: Request) -> None:
        self._requests.append(request)

    def remove(self, request: Request) -> None:
        if self.first() is request:
            self._requests.popleft()
        else:
            self._void[request] += 1
            self._num_void += 1

    def first(self) -> Request | None:
        while self._num_void and self._is_void(self._requests[0]):
            self._requests.popleft()
        return self._requests[0] if self._requests else None

    def take(self, step: Step) -> Iterator[Request]:
        # The same in fewer calls.
        requests = self._requests
        while requests and step.num_rows > 0 and step.num_slots > 0:
            request = requests.popleft()
            if self._num_void and self._is_void(request):
                continue
            request.queue = None
            # A decode that does not fit gives up its blocks and waits: it does not come back here.
            yield request

    def _is_void(self, request: Request) -> bool:
        """Of the first entry; one that is void is to be dropped."""
        num_void = self._void[request]
        if num_void == 0:
            return False
        if num_void == 1:
            # None stays behind: there may always be others.
            del self._void[request]
        else:
            self._void[request] = num_void - 1
        self._num_void -= 1
        return True
