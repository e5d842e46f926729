"""Random clients against a scheduler that is short of everything."""

from dataclasses import dataclass
from typing import get_args

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scheduler_harness import CUTS, EOS, FakeModel, Harness

from sliceserve.configs.engine import PolicyName
from sliceserve.scheduler.errors import RequestRefused
from sliceserve.scheduler.plan import StepOutput, StepPlan
from sliceserve.scheduler.prefix import block_digests
from sliceserve.scheduler.reports import Progress

model = FakeModel()


@dataclass
class Client:
    """What one client has sent and received, kept apart from the scheduler's own counts."""

    request_id: str
    entry_layer: int
    is_head: bool
    num_prompt: int
    num_tokens: int
    max_tokens: int
    ignore_eos: bool
    num_sent: int
    # Heads: how many positions its user will ask for.
    target: int
    num_computed: int = 0
    num_emitted: int = 0
    num_preempted_total: int = 0

    @property
    def num_sendable(self) -> int:
        return self.target if self.is_head else self.num_tokens


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        num_blocks=st.tuples(*[st.integers(2, 9)] * 4),
        block_size=st.integers(1, 4),
        max_model_len=st.integers(4, 40),
        max_tokens_per_step=st.integers(1, 9),
        max_requests_per_step=st.integers(1, 4),
        max_requests=st.integers(1, 7),
        policy=st.sampled_from(get_args(PolicyName)),
        tenant_weights=st.dictionaries(st.sampled_from("abc"), st.floats(0.1, 10)),
        fair_burst_tokens=st.sampled_from([0, 5, 1024]),
        long_prefill_tokens=st.integers(1, 8),
        long_prefill_share=st.floats(0.1, 1),
        target_itl_ms=st.none() | st.floats(0.5, 9),
        prefix_cache=st.booleans(),
        max_cached_packet_bytes=st.integers(0, 200),
    )
    def start(self, **settings: object) -> None:
        self.harness = Harness(**settings)
        self.scheduler = self.harness.scheduler
        self.limits = settings
        self.clients: dict[str, Client] = {}
        self.in_flight: tuple[StepPlan, StepOutput, list[Client]] | None = None

    def max_len(self, entry_layer: int) -> int:
        lowest = CUTS.index(entry_layer)
        num_blocks = min(self.limits["num_blocks"][lowest:])
        return min(self.limits["max_model_len"], num_blocks * self.limits["block_size"])

    @rule(
        name=st.integers(0, 8),
        entry_layer=st.sampled_from(CUTS),
        is_head=st.booleans(),
        num_prompt=st.integers(1, 14),
        num_outputs=st.sampled_from([0, 0, 0, 1, 3]),
        max_tokens=st.integers(1, 20),
        ignore_eos=st.booleans(),
        tenant=st.sampled_from("abc"),
        priority=st.integers(-10, 10),
        names_prefix=st.booleans(),
    )
    def open(
        self,
        name,
        entry_layer,
        is_head,
        num_prompt,
        num_outputs,
        max_tokens,
        ignore_eos,
        tenant,
        priority,
        names_prefix,
    ):
        request_id = f"r{name % 2}/{name}"
        is_head = is_head and entry_layer == 0
        num_tokens = num_prompt + num_outputs
        max_len = self.max_len(entry_layer)
        if request_id in self.clients or (not is_head and num_outputs >= max_tokens):
            expected = "invalid_request"
        elif num_tokens > max_len - (not is_head):
            expected = "context_length_exceeded"
        elif len(self.clients) >= self.limits["max_requests"]:
            expected = "overloaded"
        else:
            expected = None
        options = {
            "entry_layer": entry_layer,
            "is_head": is_head,
            "num_outputs": num_outputs,
            "max_tokens": max_tokens,
            "ignore_eos": ignore_eos,
            "tenant": tenant,
            "priority": priority,
        }
        if names_prefix and entry_layer > 0:
            packets = [model.packet(request_id, p) for p in range(num_tokens)]
            options["prefix"] = block_digests(packets, self.limits["block_size"])
        if expected is not None:
            with pytest.raises(RequestRefused) as refused:
                self.harness.open(request_id, num_prompt, **options)
            assert refused.value.code == expected
            return
        request = self.harness.open(request_id, num_prompt, **options)
        assert request.packets == [model.packet(request_id, p) for p in range(request.num_emitted)]
        self.clients[request_id] = Client(
            request_id,
            entry_layer,
            is_head,
            num_prompt,
            num_tokens,
            max_tokens,
            ignore_eos,
            num_sent=request.num_known,
            target=min(max_len, num_tokens + 6),
            num_computed=request.num_computed,
            num_emitted=request.num_emitted,
        )

    def pick(self, data: st.DataObject) -> Client:
        return self.clients[data.draw(st.sampled_from(sorted(self.clients)))]

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), num_repeated=st.integers(0, 3), num_new=st.integers(0, 9))
    def send(self, data, num_repeated, num_new):
        client = self.pick(data)
        stop = min(client.num_sent + num_new, client.num_sendable)
        assert (
            self.harness.send(client.request_id, max(0, client.num_sent - num_repeated), stop)
            is None
        )
        client.num_sent = max(client.num_sent, stop)

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), gap=st.integers(1, 3))
    def send_with_gap(self, data, gap):
        client = self.pick(data)
        start = client.num_sent + gap
        assert self.harness.send(client.request_id, start, start + 1) == client.num_sent

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def send_too_much(self, data):
        client = self.pick(data)
        stop = self.max_len(0) if client.is_head else client.num_tokens
        with pytest.raises(RequestRefused):
            self.harness.send(client.request_id, client.num_sent, stop + 1)

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def cancel(self, data):
        client = self.pick(data)
        self.scheduler.cancel(client.request_id)
        del self.clients[client.request_id]
        assert self.harness.send(client.request_id, 0, 1) is None

    @precondition(lambda self: self.in_flight is None)
    @rule()
    def schedule(self):
        plan = self.scheduler.schedule()
        if plan is None:
            return
        assert 0 < plan.num_tokens <= self.limits["max_tokens_per_step"]
        assert len(plan.requests) <= self.limits["max_requests_per_step"]
        entries = [r.entry_layer for r in plan.requests]
        assert entries == sorted(entries)
        self.check_tables(plan)
        num_preempted_total = self.scheduler.stats.num_preempted_total
        clients = [self.clients[r.request_id] for r in plan.requests]
        for client, scheduled in zip(clients, plan.requests, strict=True):
            stop = scheduled.start + scheduled.num_tokens
            assert stop <= client.num_sent
            if scheduled.start != client.num_computed:
                assert scheduled.start % self.limits["block_size"] == 0
                assert scheduled.start == 0 or self.limits["prefix_cache"]
            if scheduled.start < client.num_computed:
                assert num_preempted_total > client.num_preempted_total
            client.num_computed = stop
            client.num_preempted_total = num_preempted_total
            make = model.token if client.entry_layer == 0 else model.packet
            positions = range(scheduled.start, stop)
            assert scheduled.inputs == [make(client.request_id, p) for p in positions]
            samples = not client.is_head and stop == client.num_tokens
            assert (scheduled.sampling is not None) == samples
            assert scheduled.num_emitted == client.num_emitted
        self.harness.kv.run(plan)
        self.in_flight = (plan, model.run(plan, frozenset(self.harness.heads)), clients)

    def check_tables(self, plan: StepPlan) -> None:
        for scheduled in plan.requests:
            stop = scheduled.start + scheduled.num_tokens
            lowest = CUTS.index(scheduled.entry_layer)
            for i, table in enumerate(scheduled.block_tables):
                assert i >= lowest or not table
                assert i < lowest or len(table) * self.limits["block_size"] >= stop
                assert len(set(table)) == len(table)

    @precondition(lambda self: self.in_flight is not None)
    @rule()
    def update(self):
        plan, output, clients = self.in_flight
        self.in_flight = None
        progress = {p.request.request_id: p for p in self.scheduler.update(plan, output)}
        still_live = [c for c in clients if self.clients.get(c.request_id) is c]
        assert sorted(progress) == sorted(c.request_id for c in still_live)
        for client in still_live:
            self.receive(client, progress[client.request_id])

    def receive(self, client: Client, progress: Progress) -> None:
        if client.is_head:
            assert progress.token is None
            assert progress.finish_reason is None
            if progress.packets:
                assert progress.start == client.num_emitted
            client.num_emitted += len(progress.packets)
            assert client.num_emitted >= client.num_computed
            return
        if progress.token is None:
            assert progress.finish_reason is None
            return
        assert progress.start == client.num_tokens
        assert progress.token.token_id == model.token(client.request_id, client.num_tokens)
        client.num_tokens += 1
        if client.entry_layer == 0:
            client.num_sent += 1
        if progress.token.token_id == EOS and not client.ignore_eos:
            expected = "stop"
        elif (
            client.num_tokens - client.num_prompt >= client.max_tokens
            or client.num_tokens >= self.max_len(client.entry_layer)
        ):
            expected = "length"
        else:
            expected = None
        assert progress.finish_reason == expected
        if expected is not None:
            assert self.scheduler.get(client.request_id) is None
            del self.clients[client.request_id]

    @precondition(lambda self: self.in_flight is None)
    @rule(num_steps=st.integers(1, 5))
    def run(self, num_steps):
        for _ in range(num_steps):
            self.schedule()
            if self.in_flight is None:
                return
            self.update()

    @invariant()
    def consistent(self):
        if hasattr(self, "scheduler"):
            self.scheduler.check()
            stats = self.scheduler.stats
            assert stats.num_live == len(self.clients)
            assert self.harness.blocks.cached_packet_bytes <= self.limits["max_cached_packet_bytes"]
            assert stats.num_prefix_hit_tokens_total <= stats.num_prefix_queried_tokens_total

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        if self.in_flight is not None:
            self.update()
        # Each step computes something, and a request is replayed only for an earlier one.
        num_clients = len(self.clients)
        bound = (
            2 * (num_clients + 1) * sum(self.max_len(c.entry_layer) for c in self.clients.values())
        )
        for _ in range(bound):
            for client in list(self.clients.values()):
                self.harness.send(client.request_id, client.num_sent, client.num_sendable)
                client.num_sent = max(client.num_sent, client.num_sendable)
                if client.is_head and client.num_emitted == client.target:
                    self.scheduler.cancel(client.request_id)
                    del self.clients[client.request_id]
            if not self.clients:
                break
            self.schedule()
            assert self.in_flight is not None, "requests with pending tokens and an empty step"
            self.update()
            self.scheduler.check()
        assert not self.clients
        assert all(
            usage.num_free == usage.segment.num_blocks for usage in self.harness.blocks.usage()
        )
        assert self.scheduler.stats.held_packet_bytes == 0
        assert self.scheduler.schedule() is None


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
