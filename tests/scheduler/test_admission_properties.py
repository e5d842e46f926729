"""Random clients of several tenants at the door of a scheduler that is short of everything."""

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scheduler_harness import CUTS, Harness

from sliceserve.scheduler.errors import RequestRefused

PACKET_BYTES = 8


class AdmissionMachine(RuleBasedStateMachine):
    """Clients know of their requests what a server tells them: credit, and tokens."""

    @initialize(
        num_blocks=st.tuples(*[st.integers(4, 9)] * 4),
        admission=st.sampled_from(["preempt", "worst-case"]),
        policy=st.sampled_from(["fcfs", "priority", "fair", "prefill-aware"]),
        max_requests=st.integers(1, 5),
        tenant_max_requests=st.dictionaries(st.sampled_from("ab"), st.integers(1, 3)),
        max_queued=st.integers(0, 4),
        max_packet_bytes=st.integers(1, 900),
        credit_window=st.integers(1, 40),
    )
    def start(self, **limits):
        self.limits = limits
        self.harness = Harness(
            block_size=4,
            max_model_len=16,
            packet_bytes=PACKET_BYTES,
            max_tokens_per_step=9,
            **limits,
        )
        self.scheduler = self.harness.scheduler
        self.credit = {}
        self.tenants = {}
        self.num_opened = 0

    @rule(
        tenant=st.sampled_from("abc"),
        entry_layer=st.sampled_from(CUTS),
        num_prompt=st.integers(1, 10),
        max_tokens=st.integers(1, 9),
        priority=st.integers(-1, 1),
        may_queue=st.booleans(),
    )
    def open(self, tenant, entry_layer, num_prompt, max_tokens, priority, may_queue):
        name = f"r{self.num_opened}"
        self.num_opened += 1
        may_queue = may_queue and entry_layer > 0
        num_queued = self.scheduler.stats.num_queued
        try:
            request = self.harness.open(
                name,
                num_prompt,
                entry_layer=entry_layer,
                max_tokens=max_tokens,
                tenant=tenant,
                priority=priority,
                may_queue=may_queue,
            )
        except RequestRefused as refused:
            assert refused.code == "overloaded"
            assert self.credit, "refused by an empty scheduler"
            assert not may_queue or num_queued >= self.limits["max_queued"]
            return
        self.credit[name] = request.credit
        self.tenants[name] = tenant

    @precondition(lambda self: self.credit)
    @rule(data=st.data(), most=st.integers(1, 9))
    def send(self, data, most):
        self.send_one(data.draw(st.sampled_from(sorted(self.credit))), most)

    def send_one(self, name, most=99):
        request = self.scheduler.get(name)
        if request.entry_layer > 0:
            start = request.num_known
            stop = min(start + most, request.num_tokens, self.credit[name])
            assert self.harness.send(name, start, max(start, stop)) is None

    @precondition(lambda self: self.credit)
    @rule(data=st.data())
    def cancel(self, data):
        name = data.draw(st.sampled_from(sorted(self.credit)))
        self.scheduler.cancel(name)
        del self.credit[name]

    @rule()
    def run(self):
        self.step()

    def step(self):
        """Whether anything happened."""
        supplied = self.scheduler.supply()
        for request in supplied:
            assert request.credit >= self.credit[request.request_id]
            self.credit[request.request_id] = request.credit
        plan = self.scheduler.schedule()
        if plan is None:
            return bool(supplied)
        for progress in self.scheduler.update(plan, self.harness.model.run(plan)):
            name = progress.request.request_id
            assert progress.request.credit >= self.credit[name]
            self.credit[name] = progress.request.credit
            if progress.finish_reason is not None:
                del self.credit[name]
        return True

    @invariant()
    def consistent(self):
        if not hasattr(self, "scheduler"):
            return
        # Counts, limits and the bound of the packet store.
        self.scheduler.check()
        stats = self.scheduler.stats
        assert stats.num_live + stats.num_queued == len(self.credit)
        assert stats.num_live <= self.limits["max_requests"]
        assert stats.held_packet_bytes <= self.limits["max_packet_bytes"] + 16 * PACKET_BYTES
        if self.limits["admission"] == "worst-case":
            assert stats.num_preempted_total == 0

    def teardown(self):
        if not hasattr(self, "scheduler"):
            return
        # Everybody who was let in or waits is served to the end, however little room there is.
        for _ in range(40 * (len(self.credit) + 1)):
            if not self.credit:
                break
            for name in sorted(self.credit):
                self.send_one(name)
            self.step()
            self.consistent()
        assert not self.credit, "somebody was never served"
        assert all(u.num_free == u.segment.num_blocks for u in self.harness.blocks.usage())
        assert self.scheduler.stats.held_packet_bytes == 0


TestAdmissionMachine = AdmissionMachine.TestCase
TestAdmissionMachine.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
