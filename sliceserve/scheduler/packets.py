"""Room for the packets of split clients: what may be sent, so that what is kept stays bounded."""

from collections.abc import Iterable

from sliceserve.scheduler.errors import SchedulerError
from sliceserve.scheduler.request import Request

# How far credit runs ahead of a request's last token, so that not each needs a message.
AHEAD = 16
# A grant takes this share of the free bytes at most, so that many uploads go on side by side.
_SHARE = 16


class PacketStore:
    """Counts the bytes of packets that are kept for replay, and grants credit within a limit.

    A request's ``credit`` is the position up to which its client may send. It reaches up to
    ``window`` positions past the computed ones, and `AHEAD` past the last token. Below it
    ``packet_bytes``, the most that a packet can have, are reserved for each position that has not
    come. Credit that would take what is kept and reserved above ``max_bytes`` is not granted, but
    to the one request that entered first. Others get theirs later, first short, first served.

    So with K(r) for what is kept and reserved of request r, and e for the one that entered first,

        sum of K(r) over all r but e  ≤  max_bytes

    at all times: a grant to another keeps even the sum with e within ``max_bytes``; a grant to e is
    not in it; a packet that comes takes no more than was reserved for it; and when e ends, the
    requests left, the next first among them, are those that the sum was over. Memory is bounded by
    ``max_bytes`` and one request, max_model_len · packet_bytes at most. And as e never lacks
    credit, some request can always go on to its end.
    """

    def __init__(self, max_bytes: int, window: int, packet_bytes: int) -> None:
        self.num_held = 0
        self._num_reserved = 0
        self._max_bytes = max_bytes
        self._window = window
        self._packet_bytes = packet_bytes
        # In the order of entering; and those of them that lack credit.
        self._requests: dict[str, Request] = {}
        self._short: dict[str, Request] = {}

    def enter(self, request: Request) -> None:
        """Count the packets of the request from now on, and give it credit if there is room."""
        self._requests[request.request_id] = request
        self.take(request, request.inputs)
        self.extend(request)

    def has_room(self, num_packets: int) -> bool:
        """Whether so many packets may be kept that no credit was given for."""
        return num_packets * self._packet_bytes <= self._num_free

    def take(self, request: Request, packets: Iterable[bytes]) -> None:
        """These, the last of its inputs, are kept now."""
        sizes = list(map(len, packets))
        num_before = request.num_known - len(sizes)
        self._num_reserved -= self._reserved(request, num_before) - self._reserved(request)
        request.num_packet_bytes += sum(sizes)
        self.num_held += sum(sizes)

    def extend(self, request: Request) -> None:
        """Raise the request's credit if it is getting scarce, and there is room."""
        if request.credit >= request.num_tokens + AHEAD // 2:
            return
        if self._num_wanted(request) > 0:
            self._short[request.request_id] = request
            if self._may_be_next(request):
                self._grant(request)

    def leave(self, request: Request) -> None:
        """Forget a request and its packets. Unknown ones are ignored."""
        if self._requests.pop(request.request_id, None) is not None:
            self._short.pop(request.request_id, None)
            self._num_reserved -= self._reserved(request)
            self.num_held -= request.num_packet_bytes

    def supply(self) -> list[Request]:
        """Give credit to those that lack it, as far as there is room; who got some."""
        supplied = []
        while self._short:
            request = next(iter(self._short.values()))
            if not self._grant(request):
                first = self._first()
                if first is None or first.request_id not in self._short:
                    break
                request = first
                self._grant(request)
            supplied.append(request)
        return supplied

    def check(self, requests: Iterable[Request]) -> None:
        """Raise SchedulerError unless the counts are those of ``requests`` and within the bound."""
        kept = {r.request_id: sum(map(len, r.inputs)) for r in requests if r.entry_layer > 0}
        counted = {i: r.num_packet_bytes for i, r in self._requests.items()}
        if kept != counted or self.num_held != sum(kept.values()):
            raise SchedulerError(f"{self.num_held} packet bytes are miscounted")
        reserved = {i: self._reserved(r) for i, r in self._requests.items()}
        if self._num_reserved != sum(reserved.values()):
            raise SchedulerError(f"{self._num_reserved} reserved packet bytes are miscounted")
        first = self._first()
        others = [i for i in kept if first is None or i != first.request_id]
        if sum(kept[i] + reserved[i] for i in others) > self._max_bytes:
            raise SchedulerError(f"packets take more than the {self._max_bytes} bytes allowed")

    @property
    def _num_free(self) -> int:
        return self._max_bytes - self.num_held - self._num_reserved

    def _first(self) -> Request | None:
        return next(iter(self._requests.values()), None)

    def _may_be_next(self, request: Request) -> bool:
        """Nobody passes those that have been short for longer, but the first of all."""
        return request is next(iter(self._short.values())) or request is self._first()

    def _grant(self, request: Request) -> bool:
        """Raise the credit of a request that is short of it, if there is room."""
        num_free = self._num_free
        most = max(AHEAD, num_free // (_SHARE * self._packet_bytes))
        num_positions = max(0, min(self._num_wanted(request), most))
        num_bytes = num_positions * self._packet_bytes
        if num_bytes > num_free and request is not self._first():
            return False
        request.credit = max(request.credit, request.num_known) + num_positions
        self._num_reserved += num_bytes
        self._short.pop(request.request_id, None)
        return True

    def _num_wanted(self, request: Request) -> int:
        target = min(request.num_computed + self._window, request.num_tokens + AHEAD)
        return target - max(request.credit, request.num_known)

    def _reserved(self, request: Request, num_known: int | None = None) -> int:
        num_known = request.num_known if num_known is None else num_known
        return self._packet_bytes * max(0, request.credit - num_known)
