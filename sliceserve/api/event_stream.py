"""Server-sent events as an HTTP answer."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


def encode_event(data: Any, name: str | None = None) -> bytes:
    """One event with ``data`` as JSON; ``name`` is its type, if it has one."""
    kind = b"" if name is None else b"event: %b\n" % name.encode()
    return b"%bdata: %b\n\n" % (kind, msgspec.json.encode(data))


class EventStream(StreamingResponse):
    """Closes ``source`` however the response ends, even if not one event was asked for."""

    def __init__(self, events: AsyncIterator[bytes], source: AsyncGenerator[Any, None]) -> None:
        # Proxies must neither keep nor collect what should be seen at once.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._source.aclose()
