"""A line made worse on purpose: rate, delay, jitter and outages, for tests and benches.

`LinkShape` says how bad. `ShapedLink` wraps a `Link`, `ShapingProxy` (proxy.py) stands between
real sockets. Both ask a `Bottleneck` when what they carry arrives, and deliver it then.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sliceserve.transport.link import CloseCode, Link, LinkClosed, wire_bytes
from sliceserve.transport.loopback import ClosableQueue
from sliceserve.transport.rates import RateTrace, constant_rate

# What a sender may have waiting before the line, as a kernel's socket buffer would hold.
SEND_BUFFER_BYTES = 64 * 1024
# Pieces under way on one line at most.
QUEUE_CAPACITY = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkShape:
    """How a line behaves, the same each time it is run.

    ``up_mbps`` and ``down_mbps`` are megabits (10^6 bits) a second, None without limit; instead
    of ``up_mbps``, ``up_trace`` repeats measured rates. ``delay_ms`` is added each way, and to it
    ``jitter_ms`` times a number drawn from [0, 1) by ``seed``; order is kept. ``outages`` are
    (start, length) in seconds after the line began, in which nothing leaves either end.
    """

    up_mbps: float | None = None
    down_mbps: float | None = None
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    outages: tuple[tuple[float, float], ...] = ()
    seed: int = 0
    up_trace: RateTrace | None = None

    def __post_init__(self) -> None:
        for name in ("up_mbps", "down_mbps"):
            rate = getattr(self, name)
            if rate is not None and not rate > 0.0:
                raise ValueError(f"{name} must be above 0, or none for no limit, got {rate}")
        for name in ("delay_ms", "jitter_ms"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.up_mbps is not None and self.up_trace is not None:
            raise ValueError("give up_mbps or up_trace, not both")
        ends = 0.0
        for start, length in self.outages:
            if not (start >= ends and length > 0.0):
                raise ValueError(
                    "outages must be (start, length) in order, apart and longer than 0, "
                    f"got {self.outages}"
                )
            ends = start + length


class Clock(Protocol):
    """Time in seconds from any origin."""

    def now(self) -> float: ...

    async def sleep_until(self, when: float) -> None: ...


class MonotonicClock:
    """The clock of the machine."""

    def now(self) -> float:
        return time.monotonic()

    async def sleep_until(self, when: float) -> None:
        await asyncio.sleep(max(0.0, when - self.now()))


class Passage(NamedTuple):
    """``room_s``: when the sender may offer more; ``arrival_s``: when the bytes are there."""

    room_s: float
    arrival_s: float


class Bottleneck:
    """One direction of a shaped line, as arithmetic: a first-in-first-out queue served at a rate
    (a token bucket of depth 0), and a delay behind it. Times are seconds since the line began."""

    def __init__(self, shape: LinkShape, direction: str) -> None:
        mbps = shape.up_mbps if direction == "up" else shape.down_mbps
        self._rate = None if mbps is None else constant_rate(mbps)
        if direction == "up" and shape.up_trace is not None:
            self._rate = shape.up_trace
        self._outages = shape.outages
        self._delay_s = shape.delay_ms / 1e3
        self._jitter_s = shape.jitter_ms / 1e3
        self._random = random.Random(f"{shape.seed} {direction}")
        self._free_s = 0.0
        self._last_arrival_s = 0.0
        self._waiting: deque[tuple[float, int]] = deque()
        self._waiting_bytes = 0

    def enter(self, num_bytes: int, now_s: float) -> Passage:
        """Account for bytes that are handed to the line now."""
        self._free_s = self._leave(max(now_s, self._free_s), num_bytes * 8)
        jitter_s = self._jitter_s * self._random.random()
        arrival_s = max(self._free_s + self._delay_s + jitter_s, self._last_arrival_s)
        self._last_arrival_s = arrival_s
        return Passage(self._room(num_bytes, now_s), arrival_s)

    def _leave(self, start_s: float, num_bits: float) -> float:
        """When the last of the bits is past the bottleneck."""
        for begin_s, length_s in self._outages:
            end_s = begin_s + length_s
            if start_s >= end_s:
                continue
            if start_s < begin_s:
                done_s = self._finish(start_s, num_bits)
                if done_s <= begin_s:
                    return done_s
                if self._rate is not None:
                    num_bits -= self._rate.carried(begin_s) - self._rate.carried(start_s)
            start_s = end_s
        return self._finish(start_s, num_bits)

    def _finish(self, start_s: float, num_bits: float) -> float:
        return start_s if self._rate is None else self._rate.finish(start_s, num_bits)

    def _room(self, num_bytes: int, now_s: float) -> float:
        """When no more than the send buffer's bytes wait before the bottleneck."""
        self._waiting.append((self._free_s, num_bytes))
        self._waiting_bytes += num_bytes
        room_s = now_s
        while self._waiting_bytes > SEND_BUFFER_BYTES:
            room_s, gone = self._waiting.popleft()
            self._waiting_bytes -= gone
        return room_s


class Lane:
    """Carries the pieces of one connection through a bottleneck, in order, to ``deliver``.

    ``origin_s`` is when the line began, on ``clock``. While ``flowing`` is unset nothing is
    delivered. A ``deliver`` that raises an OSError ends the lane.
    """

    def __init__(
        self,
        bottleneck: Bottleneck,
        deliver: Callable[[bytes], Awaitable[None]],
        clock: Clock,
        origin_s: float,
        flowing: asyncio.Event | None = None,
    ) -> None:
        self._bottleneck = bottleneck
        self._deliver = deliver
        self._clock = clock
        self._origin_s = origin_s
        self._flowing = flowing
        self._queue: ClosableQueue[tuple[float, bytes]] = ClosableQueue(QUEUE_CAPACITY)
        self._task = asyncio.create_task(self._carry())

    async def push(self, data: bytes, num_bytes: int) -> None:
        """Send off one piece, which takes ``num_bytes`` of the line; waits while the send buffer is
        full. LinkClosed once the lane has ended."""
        passage = self._bottleneck.enter(num_bytes, self._clock.now() - self._origin_s)
        await self._queue.put((passage.arrival_s + self._origin_s, data))
        await self._clock.sleep_until(passage.room_s + self._origin_s)

    async def finish(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Wait until all that was pushed is delivered; more is refused with this code."""
        await self._queue.close(code, reason)
        await self._task

    async def stop(self) -> None:
        """Drop what is under way."""
        await self._queue.close(CloseCode.ABNORMAL)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _carry(self) -> None:
        while True:
            try:
                arrival_s, data = await self._queue.get()
            except LinkClosed:
                return
            await self._clock.sleep_until(arrival_s)
            if self._flowing is not None:
                await self._flowing.wait()
            try:
                await self._deliver(data)
            except LinkClosed as error:
                await self._queue.close(error.code, error.reason)
                return
            except OSError as error:
                await self._queue.close(CloseCode.ABNORMAL, str(error))
                return


class ShapedLink:
    """A client's link behind a shaped line: sent messages go up it, received ones come down it.

    Made inside a running event loop; ``close`` ends its tasks, after what was sent has passed.
    """

    def __init__(self, link: Link, shape: LinkShape, clock: Clock | None = None) -> None:
        clock = clock or MonotonicClock()
        origin_s = clock.now()
        self._link = link
        self._inbox: ClosableQueue[bytes] = ClosableQueue(QUEUE_CAPACITY)
        self._up = Lane(Bottleneck(shape, "up"), link.send, clock, origin_s)
        self._down = Lane(Bottleneck(shape, "down"), self._inbox.put, clock, origin_s)
        self._reader = asyncio.create_task(self._read())

    @property
    def bytes_sent(self) -> int:
        return self._link.bytes_sent

    @property
    def bytes_received(self) -> int:
        return self._link.bytes_received

    async def send(self, data: bytes) -> None:
        await self._up.push(data, wire_bytes(len(data), from_client=True))

    async def receive(self) -> bytes:
        return await self._inbox.get()

    async def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        await self._up.finish()
        await self._link.close(code, reason)
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._down.stop()
        await self._inbox.close(code, reason)

    async def _read(self) -> None:
        while True:
            try:
                data = await self._link.receive()
            except LinkClosed as error:
                await self._down.finish()
                await self._inbox.close(error.code, error.reason)
                await self._up.finish(error.code, error.reason)
                return
            await self._down.push(data, wire_bytes(len(data), from_client=False))
