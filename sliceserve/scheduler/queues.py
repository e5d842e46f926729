"""Who goes next: the one place where the order of a step is decided."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

from sliceserve.scheduler.arrival import ByArrival
from sliceserve.scheduler.request import Request

# The share of a step that decodes leave to longer work, every second step.
KEPT_SHARE = 4


class Step:
    """Rows and requests still free in a step, and what has been chosen for it."""

    def __init__(self, num_rows: int, num_slots: int) -> None:
        self.num_rows = num_rows
        self.num_slots = num_slots
        self.chosen: dict[str, tuple[Request, int]] = {}

    def choose(self, request: Request, num_rows: int) -> None:
        self.chosen[request.request_id] = (request, num_rows)
        self.num_rows -= num_rows
        self.num_slots -= 1

    def drop(self, request: Request) -> None:
        """Give back what the request had, if it was chosen."""
        if (choice := self.chosen.pop(request.request_id, None)) is not None:
            self.num_rows += choice[1]
            self.num_slots += 1


class _Queue(Protocol):
    def first(self) -> Request | None: ...


class _Rotation:
    """First come, first served; who has been served joins again at the end."""

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


class Queues:
    """Requests with pending tokens that are not in a step.

    ``decodes`` hold blocks and have one pending token, ``prefills`` hold blocks and have more,
    ``waiting`` hold none. Those without pending tokens wait for their client and are in no queue.

    A step takes decodes in rotation, then prefills and then the waiting, both by arrival. While
    there are any of the latter, decodes leave them a quarter of the rows and of the requests in
    every second step (what they do not need goes back to decodes). Hence, memory permitting, with
    T rows and R requests a step:

    - a decode with k others before it is served within 2·⌈(k + 1) / min(T, R)⌉ steps;
    - the earliest prefill, of n tokens, has at most one of them left after
      2·⌈n / max(1, ⌊T / 4⌋)⌉ steps; that one is served as a decode.
    """

    def __init__(self) -> None:
        self.decodes = _Rotation()
        self.prefills = ByArrival()
        self.waiting = ByArrival()
        self._kept_last = False

    @property
    def num_running(self) -> int:
        return len(self.decodes) + len(self.prefills)

    def push(self, request: Request) -> None:
        if request.num_pending == 0:
            return
        if not request.holds_blocks:
            self.waiting.add(request)
        elif request.num_pending == 1:
            self.decodes.add(request)
        else:
            self.prefills.add(request)

    def discard(self, request: Request) -> None:
        for queue in (self.decodes, self.prefills, self.waiting):
            if queue.discard(request):
                return

    def candidates(self, step: Step) -> Iterator[Request]:
        """Requests to serve next, while ``step`` has room.

        Whoever takes one removes it from its queue. One that is left where it was did not fit:
        nobody passes it in its queue.
        """
        self._kept_last = not self._kept_last and bool(self.prefills or self.waiting)
        kept_rows = kept_slots = 0
        if self._kept_last:
            kept_rows = max(1, step.num_rows // KEPT_SHARE)
            kept_slots = max(1, step.num_slots // KEPT_SHARE)
        yield from _each(self.decodes, step, kept_rows, kept_slots)
        yield from _each(self.prefills, step)
        yield from _each(self.waiting, step)
        yield from _each(self.decodes, step)


def _each(queue: _Queue, step: Step, kept_rows: int = 0, kept_slots: int = 0) -> Iterator[Request]:
    while step.num_rows > kept_rows and step.num_slots > kept_slots:
        request = queue.first()
        if request is None:
            return
        yield request
        if queue.first() is request:
            return
