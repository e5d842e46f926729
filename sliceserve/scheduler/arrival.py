"""Requests in the order of their arrival."""

from bisect import bisect_left, insort
from collections.abc import Iterator

from sliceserve.scheduler.request import Request


class ByArrival:
    """A set of requests, sorted by arrival.

    Adding and removing cost a binary search and one move of pointers: microseconds at 10,000
    requests, and they happen when a request changes its state, not at each of its steps.
    """

    def __init__(self) -> None:
        self._arrivals: list[int] = []
        self._requests: dict[int, Request] = {}

    def __len__(self) -> int:
        return len(self._arrivals)

    def __contains__(self, request: Request) -> bool:
        return request.arrival in self._requests

    def add(self, request: Request) -> None:
        if request.arrival not in self._requests:
            insort(self._arrivals, request.arrival)
            self._requests[request.arrival] = request

    def discard(self, request: Request) -> bool:
        """Remove the request if it is here; say whether it was."""
        if self._requests.pop(request.arrival, None) is None:
            return False
        del self._arrivals[bisect_left(self._arrivals, request.arrival)]
        return True

    def first(self) -> Request | None:
        return self._requests[self._arrivals[0]] if self._arrivals else None

    def latest_first(self) -> Iterator[Request]:
        for arrival in reversed(self._arrivals):
            yield self._requests[arrival]
