"""A link within one process and one event loop, for tests and for the demo without a network."""

import asyncio
from collections import deque
from typing import Generic, TypeVar

from sliceserve.transport.link import CloseCode, LinkClosed, wire_bytes

T = TypeVar("T")


class ClosableQueue(Generic[T]):
    """A bounded queue with an end: after ``close``, ``put`` raises LinkClosed at once and ``get``
    when the queue is empty; those that wait are woken."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._end: tuple[int, str] | None = None
        self._changed = asyncio.Condition()

    async def put(self, item: T) -> None:
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._end is not None or len(self._items) < self._capacity
            )
            if self._end is not None:
                raise LinkClosed(*self._end)
            self._items.append(item)
            self._changed.notify_all()

    async def get(self) -> T:
        async with self._changed:
            await self._changed.wait_for(lambda: self._items or self._end is not None)
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            assert self._end is not None
            raise LinkClosed(*self._end)

    async def close(self, code: int, reason: str = "") -> None:
        """Only the first call counts."""
        async with self._changed:
            if self._end is None:
                self._end = (code, reason)
            self._changed.notify_all()


class LoopbackLink:
    """One end of `loopback_pair`; see `Link`."""

    def __init__(
        self,
        outgoing: ClosableQueue[bytes],
        incoming: ClosableQueue[bytes],
        is_client: bool,
    ) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._is_client = is_client
        self._bytes_sent = 0
        self._bytes_received = 0

    @property
    def bytes_sent(self) -> int:
        return self._bytes_sent

    @property
    def bytes_received(self) -> int:
        return self._bytes_received

    async def send(self, data: bytes) -> None:
        await self._outgoing.put(data)
        self._bytes_sent += wire_bytes(len(data), from_client=self._is_client)

    async def receive(self) -> bytes:
        data = await self._incoming.get()
        self._bytes_received += wire_bytes(len(data), from_client=not self._is_client)
        return data

    async def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        await self._outgoing.close(code, reason)
        await self._incoming.close(code, reason)


def loopback_pair(capacity: int = 64) -> tuple[LoopbackLink, LoopbackLink]:
    """The client's and the server's end of a line that holds ``capacity`` messages each way.

    Bytes are counted as on a WebSocket. Closing with `CloseCode.ABNORMAL` plays a lost line.
    """
    up: ClosableQueue[bytes] = ClosableQueue(capacity)
    down: ClosableQueue[bytes] = ClosableQueue(capacity)
    return LoopbackLink(up, down, is_client=True), LoopbackLink(down, up, is_client=False)
