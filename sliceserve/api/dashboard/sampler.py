"""Looks at the metrics now and then, for all viewers of the dashboard together."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable

import msgspec

from sliceserve.api.dashboard.figures import Counts, Rates, State
from sliceserve.api.dashboard.readings import Readings

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
# Spans that rates are of: what charts show, and what percentiles need to be steady.
_SHORT_S, _LONG_S = 10.0, 60.0
# Samples are not taken to the millisecond.
_SLACK_S = 0.5
HISTORY_S = 300.0


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """What charts show of one moment; rates are those of the short span before it."""

    at: float
    sessions: float
    live: float
    queued: float
    waiting: float
    split_per_s: float | None
    thin_per_s: float | None
    requests_per_step: float | None
    rows_per_step: float | None
    busy: float | None
    uplink_bytes_per_token: float | None
    inter_token_p50: float | None
    inter_token_p99: float | None
    first_token_p50: float | None
    first_token_p99: float | None
    errors: float

    @classmethod
    def of(cls, state: State, rates: Rates) -> "Point":
        seconds = rates.seconds
        return cls(
            at=state.at,
            sessions=sum(state.sessions.values()),
            live=state.live,
            queued=state.queued,
            waiting=state.waiting,
            split_per_s=rates.split_tokens / seconds if seconds else None,
            thin_per_s=rates.thin_tokens / seconds if seconds else None,
            requests_per_step=rates.requests_per_step,
            rows_per_step=rates.rows_per_step,
            busy=rates.busy,
            uplink_bytes_per_token=rates.uplink_bytes_per_token,
            inter_token_p50=rates.inter_token.p50,
            inter_token_p99=rates.inter_token.p99,
            first_token_p50=rates.first_token.p50,
            first_token_p99=rates.first_token.p99,
            errors=sum(rates.errors.values()),
        )


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One event: the state, and the rates of the last seconds, the last minute, and since start.
    The first one that a viewer gets has the points before it too."""

    state: State
    point: Point
    short: Rates
    long: Rates
    total: Rates
    history: list[Point] = []


class Sampler:
    """Takes a sample each ``interval_s`` while somebody watches, and none else.

    ``read`` gives the metrics, or None while the engine is too busy to tell; ``is_draining`` the
    mood of the server. For one event loop.
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[Readings | None]],
        is_draining: Callable[[], bool],
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._read = read
        self._is_draining = is_draining
        self._interval_s = interval_s
        self._counts: deque[Counts] = deque()
        self._points: deque[Point] = deque()
        self._num_viewers = 0
        self._closed = False
        self._sampling: asyncio.Task[None] | None = None
        # All viewers wait for the same; then it is replaced. None ends their streams.
        self._next: asyncio.Future[Sample | None]

    @property
    def num_viewers(self) -> int:
        return self._num_viewers

    async def samples(self) -> AsyncGenerator[Sample, None]:
        """As they are taken, until `close`; a viewer who is slow misses some."""
        if self._closed:
            return
        self._num_viewers += 1
        if self._sampling is None:
            self._next = asyncio.get_running_loop().create_future()
            self._sampling = asyncio.create_task(self._sample(self._next))
        try:
            sample = await asyncio.shield(self._next)
            if sample is not None:
                sample = msgspec.structs.replace(sample, history=list(self._points))
            while sample is not None:
                yield sample
                sample = await asyncio.shield(self._next)
        finally:
            self._num_viewers -= 1
            if not self._num_viewers:
                await self._stop()

    async def close(self) -> None:
        """End the streams of all viewers, for good."""
        self._closed = True
        await self._stop()

    async def _stop(self) -> None:
        if (sampling := self._sampling) is not None:
            self._sampling = None
            sampling.cancel()
            await asyncio.gather(sampling, return_exceptions=True)

    async def _sample(self, coming: "asyncio.Future[Sample | None]") -> None:
        loop = asyncio.get_running_loop()
        clock, due = loop.time, loop.time()
        try:
            while True:
                if (readings := await self._read()) is not None:
                    taken, coming = coming, loop.create_future()
                    self._next = coming
                    taken.set_result(self._evaluate(readings))
                due = max(due + self._interval_s, clock())
                await asyncio.sleep(due - clock())
        except Exception:
            logger.exception("the dashboard cannot read the metrics")
        finally:
            coming.set_result(None)

    def _evaluate(self, readings: Readings) -> Sample:
        state = State.of(readings, time.time(), self._is_draining())
        counts = Counts.of(readings, state.uptime)
        self._counts.append(counts)
        while self._counts[0].seconds < counts.seconds - _LONG_S - _SLACK_S:
            self._counts.popleft()
        short = self._rates(counts, _SHORT_S)
        point = Point.of(state, short)
        self._points.append(point)
        while self._points[0].at < point.at - HISTORY_S:
            self._points.popleft()
        return Sample(
            state=state,
            point=point,
            short=short,
            long=self._rates(counts, _LONG_S),
            total=Rates.of(counts),
        )

    def _rates(self, now: Counts, span_s: float) -> Rates:
        """Of the last ``span_s``, or as much of them as has been seen."""
        earliest = now.seconds - span_s - _SLACK_S
        return Rates.of(now.since(next(c for c in self._counts if c.seconds >= earliest)))
