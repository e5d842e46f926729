"""Who may come in, and who waits at the door."""

from collections import Counter, defaultdict
from collections.abc import Iterable

from sliceserve.configs import SchedulerConfig
from sliceserve.scheduler.blocks import BlockManager
from sliceserve.scheduler.errors import SchedulerError
from sliceserve.scheduler.ordering import ByRank
from sliceserve.scheduler.request import Rank, Request


class Admission:
    """Gives out the places of an engine, and with admission "worst-case" its blocks too.

    A request is admitted if its tenant and the engine have a place for it and, in the worst case,
    if in every segment that it passes the blocks of its longest course, prompt and ``max_tokens``,
    fit beside those promised to others. None of them then ever lacks blocks or is preempted.

    Who does not fit waits. The first in rank of those whose tenants have a place is next, and no
    later rank passes it: as each request fits alone, its turn comes once those before it are done.
    """

    def __init__(self, config: SchedulerConfig, blocks: BlockManager) -> None:
        self._config = config
        self._blocks = blocks
        self._waiting: defaultdict[str, ByRank] = defaultdict(ByRank)
        self._num_admitted: Counter[str] = Counter()
        self._promised = [0] * len(blocks.segments)

    @property
    def num_admitted(self) -> int:
        return self._num_admitted.total()

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    def num_waiting_of(self, tenant: str) -> int:
        return len(self._waiting[tenant])

    def is_waiting(self, request: Request) -> bool:
        return request in self._waiting[request.tenant]

    def wait(self, request: Request) -> None:
        self._waiting[request.tenant].add(request)

    def next(self) -> Request | None:
        """Admit one of those that wait; None if there is no room for who is next."""
        if self.num_admitted >= self._config.max_requests:
            return None
        firsts = [queue.first() for name, queue in self._waiting.items() if self._has_place(name)]
        request = min((r for r in firsts if r is not None), key=_rank, default=None)
        if request is None or not self._fits(request):
            return None
        self._waiting[request.tenant].discard(request)
        self._num_admitted[request.tenant] += 1
        self._promise(request, 1)
        return request

    def obstacle(self, request: Request) -> str:
        """What keeps a request out that waits, in words."""
        tenant = request.tenant
        if self.num_admitted >= self._config.max_requests:
            return f"all {self._config.max_requests} places are taken"
        if self.waits_for_its_own(tenant):
            return f"all {self._max_requests(tenant)} places of tenant {tenant!r} are taken"
        return "the KV cache has no room beside what is promised to others"

    def waits_for_its_own(self, tenant: str) -> bool:
        """Whether it is the tenant's own requests that must end before others of it come in."""
        return self.num_admitted < self._config.max_requests and not self._has_place(tenant)

    def leave(self, request: Request) -> None:
        """Give up the request's place, or its turn."""
        if not self._waiting[request.tenant].discard(request):
            self._num_admitted[request.tenant] -= 1
            self._promise(request, -1)

    def check(self, requests: Iterable[Request]) -> None:
        """Raise SchedulerError unless the counts are those of ``requests``, within the limits."""
        waiting = [request for request in requests if self.is_waiting(request)]
        admitted = [request for request in requests if not self.is_waiting(request)]
        tenants = Counter(request.tenant for request in admitted)
        if +self._num_admitted != tenants or self.num_waiting != len(waiting):
            raise SchedulerError(f"{self.num_admitted} admitted requests are miscounted")
        over = [name for name, count in tenants.items() if count > self._max_requests(name)]
        if over or len(admitted) > self._config.max_requests:
            raise SchedulerError(f"more requests are admitted than allowed, {over}")
        promised = [
            sum(self._num_blocks(r) for r in admitted if i in self._blocks.passed(r.entry_layer))
            for i in range(len(self._promised))
        ]
        if self._promised != promised:
            raise SchedulerError(f"{self._promised} promised blocks are miscounted")

    def _has_place(self, tenant: str) -> bool:
        return self._num_admitted[tenant] < self._max_requests(tenant)

    def _max_requests(self, tenant: str) -> int:
        most = self._config.max_requests
        return self._config.tenant_max_requests.get(tenant, most)

    def _fits(self, request: Request) -> bool:
        num_blocks = self._num_blocks(request)
        return all(
            self._promised[i] + num_blocks <= self._blocks.segments[i].num_blocks
            for i in self._blocks.passed(request.entry_layer)
        )

    def _promise(self, request: Request, sign: int) -> None:
        for i in self._blocks.passed(request.entry_layer):
            self._promised[i] += sign * self._num_blocks(request)

    def _num_blocks(self, request: Request) -> int:
        """Blocks promised to the request in each segment."""
        if self._config.admission == "preempt":
            return 0
        return -(-request.max_len // self._blocks.block_size)


def _rank(request: Request) -> Rank:
    return request.rank
