"""The engine: any range of layers, many requests, one sentence: schedule, run, update."""

import itertools
import time
from concurrent.futures import Future

import msgspec

from sliceserve.codec.base import CodecError, max_packet_bytes
from sliceserve.configs import SchedulerConfig
from sliceserve.engine.distribution import Distribution
from sliceserve.engine.grammars import Grammar, Grammars
from sliceserve.engine.messages import (
    EARLY_TOKENS,
    AppendPackets,
    AppendTokens,
    Cancel,
    EngineInfo,
    EngineStats,
    Open,
    RequestCommand,
    RequestOutput,
    SegmentStats,
)
from sliceserve.engine.opening import continues, expect_servable, with_seed
from sliceserve.engine.runner import BadRow, Runner
from sliceserve.engine.timing import Timekeeper
from sliceserve.engine.turnover import Turnovers
from sliceserve.guides import GuideError
from sliceserve.scheduler.errors import RequestRefused
from sliceserve.scheduler.plan import SampledToken, StepOutput, StepPlan
from sliceserve.scheduler.reports import Progress
from sliceserve.scheduler.request import Request
from sliceserve.scheduler.scheduler import Scheduler

# Rows of a step, and requests: powers of two.
_STEP_SIZES = [2.0**i for i in range(15)]
# How long a grammar that is compiled may wait for an engine that has nothing else to do.
_COMPILING_POLL_S = 0.002


class Engine:
    """Commands in, outputs out; one thread calls it.

    ``handle`` never computes and never raises for what a client did wrong: the answer says so.
    """

    def __init__(
        self,
        info: EngineInfo,
        config: SchedulerConfig,
        scheduler: Scheduler,
        runner: Runner,
        grammars: Grammars,
    ) -> None:
        self.info = info
        self._config = config
        self._scheduler = scheduler
        self._runner = runner
        self._grammars = grammars
        # What shall be opened once its grammar is compiled.
        self._unopened: dict[str, tuple[Open, Future[Grammar]]] = {}
        # When a request whose client has gone is dropped, in time.monotonic seconds.
        self._deadlines: dict[str, float] = {}
        # The newest token of each request: the one that may be lost with its client's connection.
        self._last_token: dict[str, SampledToken] = {}
        self._unreported_seconds: dict[str, float] = {}
        self._turnovers = Turnovers(config.tenant_max_requests)
        self._times = Timekeeper()
        self._step_tokens = Distribution.over(_STEP_SIZES)
        self._step_requests = Distribution.over(_STEP_SIZES)
        self._num_steps = self._num_tokens = self._num_sampled = 0
        self._busy_seconds = 0.0

    def step(self) -> list[RequestOutput] | None:
        """One forward pass over what is ready; None when nothing is, until the next command.

        Raises RanksLost when another rank of this engine has ended, and the engine has too."""
        self._runner.expect_alive()
        news = self._open_compiled()
        supplied = self._scheduler.supply()
        now = time.monotonic()
        for request in supplied:
            self._times.admit(request, now)
        news += [self._credit_news(request) for request in supplied]
        plan = self._scheduler.schedule()
        if plan is None:
            return news or None
        self._times.start(plan.requests, now)
        plan, output, failures = self._run(plan)
        progress = self._scheduler.update(plan, output)
        self._count_step(plan, output)
        now = time.monotonic()
        reports = [self._report(p, output.exit_seconds, now) for p in progress]
        return news + failures + [report for report in reports if report is not None]

    def _count_step(self, plan: StepPlan, output: StepOutput) -> None:
        num_tokens = plan.num_tokens
        self._num_steps += 1
        self._num_tokens += num_tokens
        self._num_sampled += len(output.sampled)
        self._busy_seconds += sum(output.seconds.values())
        self._step_tokens.add(num_tokens)
        self._step_requests.add(len(plan.requests))

    def _run(self, plan: StepPlan) -> tuple[StepPlan, StepOutput, list[RequestOutput]]:
        """Run ``plan`` without the requests that cannot go on, whose ends come third."""
        failures: list[RequestOutput] = []
        while plan.requests:
            try:
                return plan, self._runner.run(plan), failures
            except BadRow as error:
                failures.append(self._end(error.request_id, error.code, str(error)))
                plan = StepPlan([r for r in plan.requests if r.request_id != error.request_id])
        return plan, StepOutput(), failures

    def handle(self, command: RequestCommand) -> list[RequestOutput]:
        """Take a command; the answers that it has at once."""
        try:
            return self._handle(command)
        except RequestRefused as refused:
            return [self._refuse(command, refused)]

    def _refuse(self, command: RequestCommand, refused: RequestRefused) -> RequestOutput:
        """A request that broke a rule ends; one that was never there stays so."""
        end = self._end(command.request_id, refused.code, str(refused))
        if not isinstance(command, Open):
            return end
        wait_s = self._retry_after_s(command.tenant) if refused.code == "overloaded" else None
        return msgspec.structs.replace(end, opened=True, retry_after_s=wait_s)

    def _handle(self, command: RequestCommand) -> list[RequestOutput]:
        if isinstance(command, Open):
            return self._open(command)
        if isinstance(command, AppendPackets):
            return self._append_packets(command)
        if isinstance(command, AppendTokens):
            return self._append(self._live(command.request_id), command.start, command.tokens)
        # Forgotten, or put at the end of those that wait for their clients.
        if isinstance(command, Cancel):
            self._forget(command.request_id)
        elif command.request_id in self:
            self._deadlines.pop(command.request_id, None)
            timeout = self._config.detached_timeout_s
            self._deadlines[command.request_id] = time.monotonic() + timeout
        return []

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._unopened or self._scheduler.get(request_id) is not None

    def expire(self) -> list[str]:
        """Drop the requests whose clients stayed away too long, and name them."""
        now = time.monotonic()
        expired = list(itertools.takewhile(lambda i: self._deadlines[i] <= now, self._deadlines))
        for request_id in expired:
            self._forget(request_id)
        return expired

    def seconds_to_work(self) -> float | None:
        """How long an engine that has nothing to do may wait for a command: until the next detached
        request is due, or a moment where grammars are compiled; None is for ever."""
        if self._unopened:
            return _COMPILING_POLL_S
        # All wait equally long, so the dict's order is the order of their deadlines.
        deadline = next(iter(self._deadlines.values()), None)
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def stats(self) -> EngineStats:
        counts = self._scheduler.stats
        return EngineStats(
            num_live=counts.num_live,
            num_running=counts.num_running,
            num_queued=counts.num_queued,
            num_waiting=counts.num_waiting,
            num_detached=len(self._deadlines),
            num_steps_total=self._num_steps,
            num_tokens_total=self._num_tokens,
            num_sampled_total=self._num_sampled,
            num_preempted_total=counts.num_preempted_total,
            num_prefix_queried_tokens_total=counts.num_prefix_queried_tokens_total,
            num_prefix_hit_tokens_total=counts.num_prefix_hit_tokens_total,
            busy_seconds=self._busy_seconds,
            held_packet_bytes=counts.held_packet_bytes,
            cached_packet_bytes=self._scheduler.blocks.cached_packet_bytes,
            segments=[
                SegmentStats(
                    first=usage.segment.first,
                    stop=usage.segment.stop,
                    num_blocks=usage.segment.num_blocks,
                    num_free=usage.num_free,
                    num_cached=usage.num_cached,
                )
                for usage in counts.segments
            ],
            step_tokens=self._step_tokens,
            step_requests=self._step_requests,
            paths={} if self.info.is_head else self._times.paths,
        )

    def close(self) -> None:
        """Give back what lies outside this thread."""
        self._grammars.close()
        self._runner.close()

    def check(self) -> None:
        """Raise SchedulerError unless every block, request and state is accounted for."""
        self._scheduler.check()
        self._runner.check(self)
        self._times.check(self)

    def _open(self, command: Open) -> list[RequestOutput]:
        live = self._scheduler.get(command.request_id)
        if live is not None and continues(command, live):
            return [self._attach(command, live)]
        self._forget(command.request_id)
        expect_servable(command, self.info)
        guide = command.sampling.guide
        if guide is None or self.info.is_head:
            return [self._begin(command, None)]
        grammar = self._grammars.compile(guide)
        if grammar.done():
            return [self._begin_guided(command, grammar)]
        if len(self._unopened) >= self._config.max_queued:
            raise RequestRefused("overloaded", "too many guides wait to be compiled already")
        self._unopened[command.request_id] = command, grammar
        return []

    def _open_compiled(self) -> list[RequestOutput]:
        """Begin what has waited for its grammar."""
        news = []
        for command, grammar in [item for item in self._unopened.values() if item[1].done()]:
            del self._unopened[command.request_id]
            try:
                news.append(self._begin_guided(command, grammar))
            except RequestRefused as refused:
                news.append(self._refuse(command, refused))
                continue
            if command.entry_layer > 0:
                # What came early was not taken.
                news.append(_wanted(self._live(command.request_id)))
        return news

    def _begin_guided(self, command: Open, grammar: "Future[Grammar]") -> RequestOutput:
        try:
            return self._begin(command, grammar.result())
        except GuideError as error:
            raise RequestRefused("invalid_request", str(error)) from error

    def _begin(self, command: Open, grammar: Grammar | None) -> RequestOutput:
        request = Request(
            command.request_id,
            num_prompt=command.num_prompt,
            prompt=command.prompt,
            outputs=command.outputs,
            entry_layer=command.entry_layer,
            is_head=self.info.is_head,
            sampling=with_seed(command.sampling),
            codec=command.codec,
            tenant=command.tenant,
            priority=command.priority,
        )
        self._scheduler.add(request, command.prefix, may_queue=command.may_queue)
        if grammar is not None:
            self._runner.guide(command.request_id, grammar)
        now = time.monotonic()
        self._turnovers.begin(request.tenant, now)
        self._times.open(request, now)
        if request.entry_layer == 0 or request.credit > 0:
            self._times.admit(request, now)
        self._times.note_ready(request, now)
        return msgspec.structs.replace(self._opened(request), packets=request.packets[:])

    def _attach(self, command: Open, request: Request) -> RequestOutput:
        """The request lives: say where it stands, and again the token that its client missed."""
        self._deadlines.pop(command.request_id, None)
        missed = len(request.outputs) - len(command.outputs)
        opened = self._opened(request)
        if missed == 0:
            return opened
        start = request.num_prompt + len(command.outputs)
        tokens = [self._last_token[request.request_id]]
        return msgspec.structs.replace(opened, start=start, tokens=tokens)

    def _opened(self, request: Request) -> RequestOutput:
        return RequestOutput(
            request_id=request.request_id,
            opened=True,
            num_computed=request.num_computed,
            num_cached=request.num_cached,
            wanted=request.num_known,
            credit=request.credit,
        )

    def _append_packets(self, command: AppendPackets) -> list[RequestOutput]:
        stop = command.start + len(command.packets)
        is_early = stop <= EARLY_TOKENS
        if is_early and command.request_id in self._unopened:
            return []
        request = self._live(command.request_id)
        if is_early and stop > request.credit:
            return [_wanted(request)]
        if request.entry_layer == 0:
            raise RequestRefused("invalid_request", "a request that began with tokens takes none")
        codec = self._runner.codec(request.codec or "")
        longest = max(map(len, command.packets), default=0)
        if longest > max_packet_bytes(self.info.hidden_size):
            raise RequestRefused("invalid_packet", f"no packet of this model has {longest} bytes")
        try:
            for packet in command.packets:
                codec.check(packet)
        except CodecError as error:
            raise RequestRefused("invalid_packet", str(error)) from error
        return self._append(request, command.start, command.packets)

    def _append(
        self, request: Request, start: int, items: list[int] | list[bytes]
    ) -> list[RequestOutput]:
        wanted = self._scheduler.append(request.request_id, start, items)
        self._times.note_ready(request, time.monotonic())
        return [] if wanted is None else [_wanted(request)]

    def _live(self, request_id: str) -> Request:
        request = self._scheduler.get(request_id)
        if request is None:
            raise RequestRefused("unknown_request", "no such request is live; it may have ended")
        return request

    def _end(self, request_id: str, code: str, error: str) -> RequestOutput:
        self._forget(request_id)
        return RequestOutput(
            request_id=request_id,
            finish_reason="error",
            error_code=code,
            error=error,
        )

    def _retry_after_s(self, tenant: str) -> float:
        whose, num_ends = self._scheduler.num_to_end(tenant)
        return self._turnovers.seconds_for(whose, num_ends, time.monotonic())

    def _forget(self, request_id: str) -> None:
        if self._unopened.pop(request_id, None) is not None:
            self._deadlines.pop(request_id, None)
        if (request := self._scheduler.get(request_id)) is not None:
            self._scheduler.cancel(request_id)
            self._drop_notes(request)

    def _drop_notes(self, request: Request) -> None:
        """The request has ended."""
        request_id = request.request_id
        self._turnovers.end(request.tenant, time.monotonic())
        self._times.end(request_id)
        self._runner.forget(request_id)
        self._deadlines.pop(request_id, None)
        self._last_token.pop(request_id, None)
        self._unreported_seconds.pop(request_id, None)

    def _credit_news(self, request: Request) -> RequestOutput:
        return RequestOutput(
            request_id=request.request_id,
            num_computed=request.num_computed,
            credit=request.credit,
        )

    def _report(self, progress: Progress, exit_seconds: float, now: float) -> RequestOutput | None:
        request = progress.request
        request_id = request.request_id
        seconds = self._unreported_seconds.pop(request_id, 0.0) + progress.seconds
        scored = progress.prompt_logprobs
        is_news = progress.token or progress.packets or scored or progress.finish_reason
        if not is_news and request.entry_layer == 0:
            self._unreported_seconds[request_id] = seconds
            return None
        times = None
        if progress.token or progress.packets:
            is_token = progress.token is not None
            times = self._times.finish(request, exit_seconds, is_token, now)
        report = RequestOutput(
            request_id=request_id,
            num_computed=request.num_computed,
            num_cached=request.num_cached,
            credit=request.credit,
            start=progress.start,
            tokens=[progress.token] if progress.token is not None else [],
            packets=progress.packets,
            prompt_start=request.num_scored + 1 - len(scored),
            prompt_logprobs=scored,
            seconds=seconds,
            times=times,
            finish_reason=progress.finish_reason,
        )
        if progress.finish_reason is not None:
            self._drop_notes(request)
        elif progress.token is not None:
            self._last_token[request_id] = progress.token
        return report


def _wanted(request: Request) -> RequestOutput:
    """What came was not taken: where its client must go on."""
    return RequestOutput(
        request_id=request.request_id, wanted=request.num_known, credit=request.credit
    )
