"""Decides which tokens of which requests each step computes."""

from collections.abc import Collection, Sequence

from sliceserve.configs import SchedulerConfig
from sliceserve.scheduler.admission import Admission
from sliceserve.scheduler.blocks import BlockManager
from sliceserve.scheduler.budget import StepBudget
from sliceserve.scheduler.errors import RequestRefused, SchedulerError
from sliceserve.scheduler.packets import PacketStore
from sliceserve.scheduler.places import check_places
from sliceserve.scheduler.plan import (
    FinishReason,
    PromptLogprob,
    SampledToken,
    ScheduledRequest,
    StepOutput,
    StepPlan,
)
from sliceserve.scheduler.policies import make_policy
from sliceserve.scheduler.queues import Queues
from sliceserve.scheduler.reports import Progress, SchedulerStats
from sliceserve.scheduler.request import Request
from sliceserve.scheduler.rules import Rules
from sliceserve.scheduler.step import Step


class Scheduler:
    """Lets what is computed of each request catch up with what is known.

    ``schedule`` and ``update`` alternate; requests come, grow and go at any time between. A step
    costs time in proportion to its own requests, not to those alive.

    Who goes next and who gives way is the policy's: it keeps the queues and gives each request its
    rank. A request that runs holds blocks for all that it knows. When they run out it takes those
    of requests of later rank, the latest first, idle ones included; they are replayed from their
    inputs. If that is not enough it gives up its own and waits. So nobody is preempted for a later
    rank, the first never is, and as any request fits alone it always goes on. One that has been
    preempted comes back only when all that it knows fits, so never just to lose it again.

    Where a request stands at the end of a block and the prefix cache has the next of its inputs,
    it takes the block for computed, at its first step and at each later one alike.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        blocks: BlockManager,
        max_model_len: int,
        eos_token_ids: Collection[int],
        packet_bytes: int = 4096,
    ) -> None:
        """``packet_bytes`` is the most that a packet can have."""
        self.blocks = blocks
        self._config = config
        self._rules = Rules(blocks, max_model_len, eos_token_ids)
        self._requests: dict[str, Request] = {}
        self._admission = Admission(config, blocks)
        self._packets = PacketStore(config.max_packet_bytes, config.credit_window, packet_bytes)
        # Admitted since ``supply`` was last called.
        self._admitted: list[Request] = []
        self._queues = Queues(make_policy(config))
        self._budget: StepBudget | None = None
        if config.target_itl_ms is not None:
            self._budget = StepBudget(config.target_itl_ms / 1000, config.max_tokens_per_step)
        # Between schedule and update: the requests in flight, less those cancelled since.
        self._step = Step(0, 0)
        self._num_arrived = 0
        self._num_preempted = 0
        self._num_prefix_queried = self._num_prefix_hit = 0

    @property
    def stats(self) -> SchedulerStats:
        return SchedulerStats(
            num_live=self._admission.num_admitted,
            num_queued=self._admission.num_waiting,
            num_running=self._queues.num_running + len(self._step.chosen),
            num_waiting=len(self._queues.policy.waiting),
            num_preempted_total=self._num_preempted,
            num_prefix_queried_tokens_total=self._num_prefix_queried,
            num_prefix_hit_tokens_total=self._num_prefix_hit,
            held_packet_bytes=self._packets.num_held,
            segments=self.blocks.usage(),
        )

    def get(self, request_id: str) -> Request | None:
        return self._requests.get(request_id)

    def max_len(self, entry_layer: int) -> int:
        """The most tokens, prompt and answer together, of a request that enters there."""
        return self._rules.max_len(entry_layer)

    def add(self, request: Request, prefix: Sequence[bytes] = (), may_queue: bool = False) -> None:
        """Admit the request or, with ``may_queue``, let it wait for that; it has no credit then.

        One that is admitted begins, if it is a head, with what the prefix cache has of its inputs
        and their packets; a tail with what it has under the digests ``prefix``: those packets are
        known then and need not come. Raises RequestRefused if there is no room for the request, or
        if it could never be served.
        """
        self._rules.expect_servable(request, self._requests)
        self._rules.set_end(request)
        request.rank = self._queues.policy.rank(request, self._num_arrived)
        self._num_arrived += 1
        self._requests[request.request_id] = request
        self._admission.wait(request)
        self._admit()
        if self._admission.is_waiting(request):
            self._expect_may_queue(request, may_queue)
        else:
            # Its client hears of its credit as the answer to this call.
            self._admitted.remove(request)
            self._begin_cached(request, prefix)

    def _begin_cached(self, request: Request, prefix: Sequence[bytes]) -> None:
        """Let a request that was just admitted begin with what the prefix cache has of it."""
        if request.entry_layer > 0:
            if self._packets.has_room(len(prefix) * self.blocks.block_size):
                self.blocks.recall(request, prefix)
            if not request.inputs:
                return
            self._packets.take(request, request.inputs)
        elif not request.is_head:
            return
        request.leave_queue()
        # Its next token takes the logits of the row before.
        last = request.num_known if request.is_head else request.num_tokens - 1
        self._adopt(request, min(last, request.num_known))
        self._queues.push(request)
        if request.entry_layer > 0:
            # What it knows by now may exceed its credit, and no step may come to raise that.
            self._packets.extend(request)

    def supply(self) -> list[Request]:
        """Admit whom there is room for by now, and give credit to those that were short of it. The
        requests whose clients may send more than they were told."""
        self._admit()
        admitted, self._admitted = self._admitted, []
        return admitted + self._packets.supply()

    def _admit(self) -> None:
        while (request := self._admission.next()) is not None:
            self._admitted.append(request)
            if request.entry_layer > 0:
                self._packets.enter(request)
            self._queues.push(request)

    def append(
        self, request_id: str, start: int, items: Sequence[int] | Sequence[bytes]
    ) -> int | None:
        """Inputs at positions from ``start`` on have become known: token ids or packets.

        Positions that are known already are ignored, and so are requests that are not (they may
        have ended while this was under way). Returns the position wanted if ``start`` leaves a
        gap, and then takes nothing. Raises RequestRefused for positions that cannot be known yet.
        """
        request = self._requests.get(request_id)
        if request is None:
            return None
        num_known, stop = request.num_known, start + len(items)
        if request.entry_layer > 0 and stop > request.credit:
            raise RequestRefused(
                "protocol_error",
                f"positions up to {stop} sent, but credit reaches {request.credit} only",
            )
        if start > num_known:
            return num_known
        fresh = items[num_known - start :]
        if not fresh:
            return None
        self._rules.expect_knowable(request, num_known + len(fresh))
        request.inputs += fresh
        if request.entry_layer > 0:
            self._packets.take(request, request.inputs[num_known:])
        if request not in self._step.chosen:
            request.leave_queue()
            self._queues.push(request)
        return None

    def cancel(self, request_id: str) -> None:
        """Forget the request at once, in a step or not. Unknown ids are ignored."""
        request = self._requests.get(request_id)
        if request is not None:
            self._remove(request)

    def schedule(self) -> StepPlan | None:
        """Choose the next step; None when there is nothing to do. ``update`` must follow before the
        next call."""
        if self._step.chosen:
            raise SchedulerError("the step before this one has not been updated")
        step = self._step = Step(self._num_rows(), self._config.max_requests_per_step)
        policy = self._queues.policy
        for request in self._queues.take(step):
            num_known = len(request.inputs)
            # Nothing that is cached can follow a decode, and mostly its last block has room.
            is_decode = num_known - request.num_computed == 1
            if (is_decode and num_known <= request.capacity) or self._find(request):
                policy.charge(request, step.choose(request))
        return step.plan() if step.chosen else None

    def update(self, plan: StepPlan, output: StepOutput) -> list[Progress]:
        """Account for a step that has run. What it did for requests cancelled since is dropped;
        those that finish are removed."""
        if self._budget is not None and plan.requests:
            self._budget.observe(plan.num_tokens, sum(output.seconds.values()))
        # Those that were cancelled are in the plan and not among the chosen any more.
        chosen = self._step.end().items()
        return [self._advance(request, scheduled, output) for request, scheduled in chosen]

    def _num_rows(self) -> int:
        if self._budget is None:
            return self._config.max_tokens_per_step
        return self._budget.num_rows(self._queues.num_needed(self._config.max_requests_per_step))

    def _advance(
        self, request: Request, scheduled: ScheduledRequest, output: StepOutput
    ) -> Progress:
        request_id = request.request_id
        stop = request.num_computed = scheduled.start + len(scheduled.inputs)
        if request.num_reached < request.num_prompt:
            self._count_reached(request)
        start = stop
        token: SampledToken | None = None
        finish_reason: FinishReason | None = None
        packets: Sequence[bytes] = ()
        scored: Sequence[PromptLogprob] = ()
        if request.is_head:
            start = max(scheduled.start, request.num_emitted)
            packets = self._emit(request, start, stop, output)
        elif scheduled.sampling is not None:
            token = output.sampled.get(request_id)
            if token is None:
                raise SchedulerError(f"no token was sampled for request {request_id}")
            finish_reason = request.extend(token.token_id)
        if scheduled.scoring is not None:
            scored = output.scored[request_id]
            request.num_scored += len(scored)
        if stop // self.blocks.block_size > scheduled.start // self.blocks.block_size:
            # Of a head's rows, only those that were coded in this step left a state behind.
            self.blocks.store(request, scheduled.num_emitted)
        if finish_reason is None:
            if request.entry_layer > 0:
                self._packets.extend(request)
            self._queues.push(request)
        else:
            self._remove(request)
        seconds = output.seconds.get(request_id, 0.0)
        return Progress(request, start, token, packets, scored, seconds, finish_reason)

    def _emit(self, request: Request, start: int, stop: int, output: StepOutput) -> list[bytes]:
        packets = output.packets.get(request.request_id, [])
        if len(packets) != max(0, stop - start):
            raise SchedulerError(
                f"expected packets of positions [{start}, {stop}) of request "
                f"{request.request_id}, got {len(packets)}"
            )
        request.packets += packets
        return packets

    def _find(self, request: Request) -> bool:
        """Find blocks for all that the request knows: cached ones first, free ones, and if that is
        not enough those of later ranks. False if even that cannot help; it holds none then, and
        waits."""
        is_waiting = not request.holds_blocks
        # One row at least is computed, so that there is news of the request. What a head has not
        # sent yet it encodes: cached packets are told of when it is opened, never later.
        last = request.num_known - 1
        self._adopt(request, min(last, request.num_emitted) if request.is_head else last)
        if self.blocks.grow(request, request.num_known):
            return True
        victims = self.blocks.find_victims(request, request.num_known)
        if victims is not None:
            for victim in victims:
                self._preempt(victim)
            return self.blocks.grow(request, request.num_known)
        self._num_preempted += not is_waiting
        self._give_up_blocks(request)
        return False

    def _preempt(self, request: Request) -> None:
        self._step.drop(request)
        request.leave_queue()
        self._num_preempted += 1
        self._give_up_blocks(request)

    def _give_up_blocks(self, request: Request) -> None:
        self.blocks.release(request)
        request.num_computed = 0
        self._queues.push(request)

    def _adopt(self, request: Request, num_tokens: int) -> None:
        """Take what the prefix cache has of the positions below ``num_tokens``, but of none that is
        still to be scored: that takes its logits."""
        if request.num_scored < request.num_to_score:
            num_tokens = min(num_tokens, request.num_scored)
        self.blocks.adopt(request, num_tokens)
        num_hit = self._count_reached(request)
        request.num_cached += num_hit
        self._num_prefix_hit += num_hit

    def _count_reached(self, request: Request) -> int:
        """How many positions of its prompt the request has come to for the first time."""
        num_reached = min(request.num_prompt, request.num_computed)
        num_new = num_reached - request.num_reached
        if num_new <= 0:
            return 0
        request.num_reached = num_reached
        self._num_prefix_queried += num_new
        return num_new

    def _remove(self, request: Request) -> None:
        self._step.drop(request)
        request.leave_queue()
        self._queues.policy.forget(request)
        self.blocks.release(request)
        self._packets.leave(request)
        self._admission.leave(request)
        if request in self._admitted:
            self._admitted.remove(request)
        del self._requests[request.request_id]

    def _expect_may_queue(self, request: Request, may_queue: bool) -> None:
        """Send a request away that was not admitted and must not wait for it."""
        num_before = self._admission.num_waiting_of(request.tenant) - 1
        if may_queue and num_before < self._config.max_queued:
            return
        obstacle = self._admission.obstacle(request)
        self._remove(request)
        queue = f", and {num_before} requests wait already" if num_before else ""
        raise RequestRefused("overloaded", f"{obstacle}{queue}; try again later")

    def num_to_end(self, tenant: str) -> tuple[str | None, int]:
        """How many requests must end before another of ``tenant`` comes in, and of whom: its own,
        or anybody's (None)."""
        if self._admission.waits_for_its_own(tenant):
            return tenant, self._admission.num_waiting_of(tenant) + 1
        return None, self._admission.num_waiting + 1

    def check(self) -> None:
        """Raise SchedulerError unless every request is in its one place, holds the blocks that it
        needs, and every count is right. Looks at everything: for tests and idle moments."""
        requests = self._requests.values()
        check_places(requests, self._queues, self._step)
        self._admission.check(requests)
        self._packets.check([r for r in requests if not self._admission.is_waiting(r)])
        self._queues.policy.check(self._requests)
        self.blocks.check(requests)
