"""Fair shares between tenants, by the tokens that they were served."""

import heapq
from collections.abc import Callable, Iterator

from sliceserve.configs import SchedulerConfig
from sliceserve.scheduler.errors import SchedulerError
from sliceserve.scheduler.ordering import ByRank, Queue, Rotation
from sliceserve.scheduler.policies.policy import ARRIVALS_PER_LEVEL, Policy
from sliceserve.scheduler.request import Rank, Request
from sliceserve.scheduler.step import Step

# What a token costs its tenant, as the paper weighs them: a row of a decode has a step's fixed
# cost to itself, one of a prompt shares it.
PROMPT_COST = 1.0
ANSWER_COST = 2.0


class Tenant:
    """``counter``: cost of the tokens served, over the weight, in the tenant's virtual time."""

    __slots__ = ("awake", "counter", "last_rank", "num_live", "order", "weight")

    def __init__(self, order: int, weight: float) -> None:
        self.order = order
        self.weight = weight
        self.counter = 0.0
        # Ids of the requests with pending tokens, those in a step included.
        self.awake: set[str] = set()
        self.num_live = 0
        self.last_rank = 0


class Fair(Policy):
    """Virtual token counters (Sheng et al., OSDI 2024, algorithm 2 with weights).

    In each queue the tenant with the lowest counter is next, and its requests take turns or go by
    arrival. A token is charged when it is first chosen for a step: a replay is free. A tenant that
    had nothing pending and returns is lifted to the lowest counter among the others that have, less
    ``fair_burst_tokens`` over its weight: no more idle time than that is saved up, and a short
    prompt is not served at half speed beside a flood. Of two tenants that always have work in one
    queue, neither gets more than the other by more than that and one step's cost, by weight.

    Memory: the k-th request that a tenant of weight w has at once counts as if it had arrived 64·k
    / w arrivals later, but never before the tenant's last one. So who floods the server is
    preempted before who does not, and each request is passed by a bounded number.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        super().__init__(config)
        self._weights = config.tenant_weights
        self._burst = config.fair_burst_tokens
        self._tenants: dict[str, Tenant] = {}
        self._awake = _LowestCounter(lambda tenant: tenant.awake)
        # The counter of the tenant that was the last to rest.
        self._last_counter = 0.0
        # What tenants are lifted to, less their burst. It never falls: else each that returns while
        # another uses up its burst would pass that one too.
        self._virtual_time = 0.0
        self.decodes = _ByTenant(self._tenants, Rotation)
        self.prefills = _ByTenant(self._tenants, ByRank)
        self.waiting = _ByTenant(self._tenants, ByRank)

    def rank(self, request: Request, arrival: int) -> Rank:
        tenant = self._tenants.get(request.tenant)
        if tenant is None:
            weight = self._weights.get(request.tenant, 1.0)
            tenant = self._tenants[request.tenant] = Tenant(len(self._tenants), weight)
        behind = int(ARRIVALS_PER_LEVEL * tenant.num_live / tenant.weight)
        floor = tenant.last_rank if tenant.num_live else 0
        tenant.last_rank = max(floor, arrival + behind)
        tenant.num_live += 1
        return (tenant.last_rank, arrival)

    def longer_work(self, step: Step) -> Iterator[Request]:
        left: list[Request] = []
        while step.has_room:
            heads = (self.prefills.first(), self.waiting.first())
            candidates = [head for head in heads if head is not None and head not in left]
            if not candidates:
                return
            request = min(candidates, key=lambda r: self._tenants[r.tenant].counter)
            request.leave_queue()
            yield request
            if request.queue is not None:
                left.append(request)

    def wake(self, request: Request) -> None:
        tenant = self._tenants[request.tenant]
        if not tenant.awake:
            lowest = self._awake.first()
            floor = self._last_counter if lowest is None else lowest.counter
            self._virtual_time = max(self._virtual_time, floor)
            tenant.counter = max(tenant.counter, self._virtual_time - self._burst / tenant.weight)
            self._awake.add(tenant)
        tenant.awake.add(request.request_id)

    def rest(self, request: Request) -> None:
        tenant = self._tenants[request.tenant]
        if request.request_id in tenant.awake:
            tenant.awake.remove(request.request_id)
            if not tenant.awake:
                self._last_counter = tenant.counter

    def forget(self, request: Request) -> None:
        self.rest(request)
        self._tenants[request.tenant].num_live -= 1

    def charge(self, request: Request, stop: int) -> None:
        start = max(request.num_computed, request.num_charged)
        if stop <= start:
            return
        request.num_charged = stop
        cost = ANSWER_COST * (stop - start)
        if start < request.num_prompt:
            num_prompt = min(stop, request.num_prompt) - start
            cost -= (ANSWER_COST - PROMPT_COST) * num_prompt
        tenant = self._tenants[request.tenant]
        tenant.counter += cost / tenant.weight

    def check(self, requests: dict[str, Request]) -> None:
        for name, tenant in self._tenants.items():
            live = [r for r in requests.values() if r.tenant == name]
            awake = {r.request_id for r in live if r.num_pending}
            if tenant.num_live != len(live) or tenant.awake != awake:
                raise SchedulerError(f"tenant {name!r} has lost count of its requests")


class _LowestCounter:
    """Tenants, the lowest counter first, and the one seen first among equals.

    Counters only rise, so an entry that has become too low or void is put right when it comes to
    the top.
    """

    def __init__(self, belongs: Callable[[Tenant], object]) -> None:
        self._belongs = belongs
        self._heap: list[tuple[float, int, Tenant]] = []
        self._entered: set[Tenant] = set()

    def add(self, tenant: Tenant) -> None:
        if tenant not in self._entered:
            self._entered.add(tenant)
            heapq.heappush(self._heap, (tenant.counter, tenant.order, tenant))

    def first(self) -> Tenant | None:
        heap = self._heap
        while heap:
            counter, order, tenant = heap[0]
            if not self._belongs(tenant):
                heapq.heappop(heap)
                self._entered.discard(tenant)
            elif tenant.counter > counter:
                heapq.heapreplace(heap, (tenant.counter, order, tenant))
            else:
                return tenant
        return None


class _ByTenant(Queue):
    """A queue for each tenant; the first of the tenant with the lowest counter is first."""

    def __init__(self, tenants: dict[str, Tenant], make_queue: Callable[[], Queue]) -> None:
        self._tenants = tenants
        self._make_queue = make_queue
        # None of them is empty.
        self._queues: dict[Tenant, Queue] = {}
        self._lowest = _LowestCounter(self._queues.__contains__)
        self._num_requests = 0

    def __len__(self) -> int:
        return self._num_requests

    def __contains__(self, request: Request) -> bool:
        queue = self._queues.get(self._tenants[request.tenant])
        return queue is not None and request in queue

    def add(self, request: Request) -> None:
        tenant = self._tenants[request.tenant]
        queue = self._queues.get(tenant)
        if queue is None:
            queue = self._queues[tenant] = self._make_queue()
            self._lowest.add(tenant)
        queue.add(request)
        self._num_requests += 1

    def remove(self, request: Request) -> None:
        tenant = self._tenants[request.tenant]
        queue = self._queues[tenant]
        queue.remove(request)
        self._num_requests -= 1
        if not queue:
            del self._queues[tenant]

    def first(self) -> Request | None:
        tenant = self._lowest.first()
        return None if tenant is None else self._queues[tenant].first()
