"""What carries messages: an ordered, reliable, closable line between one client and one server."""

from enum import IntEnum
from typing import Protocol


class CloseCode(IntEnum):
    """WebSocket close codes in use (RFC 6455, section 7.4, and the IANA registry)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    ABNORMAL = 1006
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    TRY_AGAIN_LATER = 1013


class LinkClosed(ConnectionError):
    """The link has ended. ``code`` 1006 is a line that was lost without a word."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(
            f"the link was closed with code {code}" + (f": {reason}" if reason else "")
        )
        self.code = code
        self.reason = reason

    @property
    def may_resume(self) -> bool:
        """Whether the line was lost, rather than ended by somebody's decision."""
        return self.code in (
            CloseCode.GOING_AWAY,
            CloseCode.ABNORMAL,
            CloseCode.INTERNAL_ERROR,
            CloseCode.TRY_AGAIN_LATER,
        )


class LinkRefused(ConnectionError):
    """No link came to be. The message says what was tried, what was answered and what to do.

    ``code``: "unreachable" (no answer), "overloaded" and "draining" may pass; "unauthorized",
    "not_found" and "protocol_error" (an answer that is none of `sliceserve.v1`) will not.
    ``status`` is the HTTP status, if there was one; ``retry_after_s`` what the server asked to
    wait.
    """

    def __init__(
        self,
        message: str,
        code: str,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.retry_after_s = retry_after_s


class Link(Protocol):
    """One end of a line. Messages arrive whole, once and in order, or the link closes.

    ``bytes_sent`` and ``bytes_received`` count messages as `wire_bytes` does.
    """

    @property
    def bytes_sent(self) -> int: ...

    @property
    def bytes_received(self) -> int: ...

    async def send(self, data: bytes) -> None:
        """Hand over one message; waits while the line is full. Any task may call it.

        Raises LinkClosed. Returning does not mean that the message has arrived.
        """
        ...

    async def receive(self) -> bytes:
        """The next message. One task at a time. Raises LinkClosed once the link has ended and
        the messages that came before the end have been received."""
        ...

    async def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """End the link; the other side learns code and reason. May be called twice."""
        ...


def wire_bytes(payload_bytes: int, from_client: bool) -> int:
    """Size of one unfragmented WebSocket message (RFC 6455, section 5.2): the payload, a header of
    2, 4 or 10 bytes, and the 4-byte mask of a client. TCP, TLS, pings and the handshake are not
    counted."""
    header = 2 if payload_bytes < 126 else 4 if payload_bytes < 1 << 16 else 10
    return payload_bytes + header + (4 if from_client else 0)
