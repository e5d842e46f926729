"""A runner without a model, and schedulers small enough to run out of everything."""

import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sliceserve.configs import SamplingParams, SchedulerConfig
from sliceserve.scheduler.blocks import BlockManager, Segment
from sliceserve.scheduler.plan import SampledToken, StepOutput, StepPlan
from sliceserve.scheduler.reports import Progress
from sliceserve.scheduler.request import Request
from sliceserve.scheduler.scheduler import Scheduler

EOS = 0
VOCAB = 50
CUTS = (0, 8, 15, 22)
STOPS = (8, 15, 22, 30)


# Positions that requests have in common whose ids differ only behind a "/".
NUM_COMMON = 11


class FakeModel:
    """Tokens and packets that depend on the request and the position alone."""

    @staticmethod
    def token(request_id: str, position: int) -> int:
        return zlib.crc32(_name(request_id, position)) % VOCAB

    @staticmethod
    def packet(request_id: str, position: int) -> bytes:
        return _name(request_id, position)

    def run(self, plan: StepPlan, heads: frozenset[str] = frozenset()) -> StepOutput:
        output = StepOutput()
        for scheduled in plan.requests:
            request_id = scheduled.request_id
            stop = scheduled.start + scheduled.num_tokens
            if scheduled.sampling is not None:
                output.sampled[request_id] = SampledToken(self.token(request_id, stop))
            if request_id in heads:
                first = max(scheduled.start, scheduled.num_emitted)
                output.packets[request_id] = [
                    self.packet(request_id, p) for p in range(first, stop)
                ]
            output.seconds[request_id] = 0.001 * scheduled.num_tokens
        return output


def _name(request_id: str, position: int) -> bytes:
    text = request_id.partition("/")[0] if position < NUM_COMMON else request_id
    return f"{text}@{position}".encode()


class FakeKV:
    """What lies in each place of each pool: the hash of all that its value depends on."""

    def __init__(self, harness: "Harness") -> None:
        self._harness = harness
        self._places: dict[tuple[int, int, int], int] = {}

    def run(self, plan: StepPlan) -> None:
        """Each row finds the positions before it as it would have computed them, and nobody writes
        to a block that another reads."""
        holders = Counter(
            (i, block)
            for scheduled in plan.requests
            for i, table in enumerate(scheduled.block_tables)
            for block in table
        )
        for scheduled in plan.requests:
            request = self._harness.scheduler.get(scheduled.request_id)
            assert request is not None
            value = hash((request.tenant, request.entry_layer, request.codec))
            for position in range(scheduled.start + scheduled.num_tokens):
                value = hash((value, request.inputs[position]))
                block, offset = divmod(position, self._harness.blocks.block_size)
                for i, table in enumerate(scheduled.block_tables):
                    if not table:
                        continue
                    place = (i, table[block], offset)
                    if position < scheduled.start:
                        assert self._places[place] == value
                    else:
                        assert holders[i, table[block]] == 1
                        self._places[place] = value


class Harness:
    """A scheduler with short ways to open requests and to run steps."""

    def __init__(
        self,
        num_blocks: tuple[int, ...] = (64, 64, 64, 64),
        block_size: int = 4,
        max_model_len: int = 200,
        prefix_cache: bool = False,
        packet_bytes: int = 64,
        max_cached_packet_bytes: int = 1 << 30,
        **limits: Any,
    ) -> None:
        firsts = (0, *STOPS[:-1])
        segments = [Segment(*edges) for edges in zip(firsts, STOPS, num_blocks, strict=True)]
        self.blocks = BlockManager(segments, block_size, prefix_cache, max_cached_packet_bytes)
        config = SchedulerConfig(**limits)
        self.scheduler = Scheduler(config, self.blocks, max_model_len, {EOS}, packet_bytes)
        self.policy = self.scheduler._queues.policy
        self.model = FakeModel()
        self.kv = FakeKV(self)
        self.heads: set[str] = set()

    def open(
        self,
        request_id: str,
        num_prompt: int,
        *,
        entry_layer: int = 0,
        is_head: bool = False,
        num_outputs: int = 0,
        tenant: str = "",
        priority: int = 0,
        codec: str | None = None,
        prefix: Sequence[bytes] = (),
        may_queue: bool = False,
        **sampling: object,
    ) -> Request:
        tokens = [self.model.token(request_id, p) for p in range(num_prompt + num_outputs)]
        request = Request(
            request_id,
            num_prompt=num_prompt,
            prompt=tokens[:num_prompt] if entry_layer == 0 else (),
            outputs=tokens[num_prompt:],
            entry_layer=entry_layer,
            is_head=is_head,
            sampling=SamplingParams(**{"ignore_eos": True, **sampling}),
            codec=codec,
            tenant=tenant,
            priority=priority,
        )
        self.scheduler.add(request, prefix, may_queue)
        (self.heads.add if is_head else self.heads.discard)(request_id)
        return request

    def send(self, request_id: str, start: int, stop: int) -> int | None:
        """Append what belongs to positions [start, stop)."""
        is_head = request_id in self.heads
        make = self.model.token if is_head else self.model.packet
        return self.scheduler.append(
            request_id, start, [make(request_id, p) for p in range(start, stop)]
        )

    def schedule(self) -> tuple[StepPlan, StepOutput]:
        plan = self.scheduler.schedule()
        assert plan is not None
        self.kv.run(plan)
        return plan, self.model.run(plan, frozenset(self.heads))

    def step(self) -> tuple[StepPlan, list[Progress]]:
        plan, output = self.schedule()
        progress = self.scheduler.update(plan, output)
        self.scheduler.check()
        return plan, progress

    def rows(self) -> dict[str, tuple[int, int]]:
        """Run a step; the rows that each request had in it."""
        plan, _ = self.step()
        return {r.request_id: (r.start, r.start + r.num_tokens) for r in plan.requests}
