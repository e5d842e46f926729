"""Orders that requests stand in."""

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections import OrderedDict
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
    def discard(self, request: Request) -> bool:
        """Remove the request if it is here; say whether it was."""

    @abstractmethod
    def first(self) -> Request | None: ...

    def take(self, step: Step) -> Iterator[Request]:
        """Take out the first, again and again, while ``step`` has room. One that is put back did
        not fit, and nobody passes it."""
        while step.has_room and (request := self.first()) is not None:
            request.leave_queue()
            yield request
            if request in self:
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

    def discard(self, request: Request) -> bool:
        if self._requests.pop(request.rank, None) is None:
            return False
        del self._ranks[bisect_left(self._ranks, request.rank)]
        return True

    def first(self) -> Request | None:
        return self._requests[self._ranks[0]] if self._ranks else None

    def latest_first(self) -> Iterator[Request]:
        for rank in reversed(self._ranks):
            yield self._requests[rank]


class Rotation(Queue):
    """In the order of adding: who has been served joins again at the end."""

    def __init__(self) -> None:
        self._requests: OrderedDict[str, Request] = OrderedDict()

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request: Request) -> bool:
        return request.request_id in self._requests

    def add(self, request: Request) -> None:
        self._requests[request.request_id] = request

    def discard(self, request: Request) -> bool:
        return self._requests.pop(request.request_id, None) is not None

    def first(self) -> Request | None:
        return next(iter(self._requests.values()), None)

    def take(self, step: Step) -> Iterator[Request]:
        # The same in fewer calls: most of a step's requests come this way.
        requests = self._requests
        while requests and step.num_rows > 0 and step.num_slots > 0:
            _, request = requests.popitem(last=False)
            request.queue = None
            # A decode that does not fit gives up its blocks and waits: it does not come back here.
            yield request
