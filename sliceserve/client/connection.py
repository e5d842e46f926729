"""One link to the server, greeted: typed messages instead of bytes."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator

import msgspec

from sliceserve.client.errors import ConnectionRefused
from sliceserve.configs import Patience
from sliceserve.transport.frames import DataFrame, ProtocolError, decode, encode
from sliceserve.transport.link import CloseCode, Link, LinkClosed, LinkRefused, wire_bytes
from sliceserve.transport.messages import OLDEST_VERSION, Control, Error, Hello, Welcome

# Makes a new link to the server. Raises LinkRefused.
Dial = Callable[[], Awaitable[Link]]

# Longest pause before the second attempt, of a first connection and of one that was lost.
_FIRST_PAUSE_S = 0.5
_FIRST_PAUSE_AGAIN_S = 0.05
_LONGEST_PAUSE_S = 5.0


class Connection:
    """A link after the handshake; ``welcome`` is what the server chose, and its limits."""

    def __init__(self, link: Link, welcome: Welcome) -> None:
        self.welcome = welcome
        self._link = link

    async def send(self, message: Control | DataFrame) -> int:
        """Send one message; its bytes on the wire. Raises LinkClosed."""
        data = encode(message)
        await self._link.send(data)
        return wire_bytes(len(data), from_client=True)

    async def receive(self) -> tuple[Control | DataFrame, int]:
        """The next message, and its bytes on the wire. Raises LinkClosed and ProtocolError."""
        data = await self._link.receive()
        return decode(data), wire_bytes(len(data), from_client=False)

    async def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        await self._link.close(code, reason)


class Dialer:
    """Makes connections to one server, first and again: after the first, all claim its session and
    ask for the cut that it chose, for the head is loaded up to there, and encodes by its profile.
    """

    def __init__(self, dial: Dial, hello: Hello, patience: Patience) -> None:
        self._dial = dial
        self._hello = hello
        self._patience = patience
        self._first: Welcome | None = None
        self._pauses_again = _pauses(_FIRST_PAUSE_AGAIN_S)
        self._resume_deadline = 0.0

    @property
    def codec(self) -> str:
        """Wire id of the packets that are sent."""
        return self._hello.codec

    async def connect(self) -> Connection:
        """As many attempts as patience allows, unless another could not succeed. Raises
        ConnectionRefused, with the server's own sentence if it gave one."""
        timeout_s = self._patience.connect_timeout_s
        pauses = _pauses(_FIRST_PAUSE_S)
        for _ in range(self._patience.max_retries):
            try:
                return await self._attempt(timeout_s)
            except ConnectionRefused as error:
                pause = next(pauses) + (error.retry_after_s or 0.0)
                if not error.may_retry or pause > timeout_s:
                    raise
            await asyncio.sleep(pause)
        return await self._attempt(timeout_s)

    async def reconnect(self, was_of_use: bool) -> Connection:
        """Attempts until one succeeds, the time is over, or no other can. Raises
        ConnectionRefused.

        Where the connection that ended brought nothing (not ``was_of_use``), as from a server that
        welcomes everybody with its engine gone, pauses and time go on from the attempt before."""
        if was_of_use:
            self._resume_deadline = time.monotonic() + self._patience.resume_timeout_s
            self._pauses_again = _pauses(_FIRST_PAUSE_AGAIN_S)
        else:
            await self._pause(
                ConnectionRefused(
                    "unreachable",
                    "the server takes connections and ends them before it answers a request; "
                    "its log says why",
                )
            )
        while True:
            left = max(0.0, self._resume_deadline - time.monotonic())
            try:
                return await self._attempt(min(self._patience.connect_timeout_s, left))
            except ConnectionRefused as error:
                await self._pause(error)

    async def _pause(self, error: ConnectionRefused) -> None:
        """Wait before another attempt to come back; raise ``error`` where none can succeed in
        time."""
        pause = next(self._pauses_again) + (error.retry_after_s or 0.0)
        if not error.may_retry or time.monotonic() + pause >= self._resume_deadline:
            raise error
        await asyncio.sleep(pause)

    def forget_session(self) -> None:
        """The server keeps nothing for the next connection."""
        self._hello = msgspec.structs.replace(self._hello, resume_token=None)

    async def _attempt(self, timeout_s: float) -> Connection:
        try:
            connection = await asyncio.wait_for(self._greet(), timeout_s)
        except asyncio.TimeoutError as error:
            raise ConnectionRefused(
                "unreachable",
                f"the server did not answer within {timeout_s:g} s; check its load and the line, "
                "or allow more with connect_timeout_s",
            ) from error
        welcome = connection.welcome
        self._first = self._first or welcome
        self._hello = msgspec.structs.replace(
            self._hello, cut=welcome.cut, resume_token=welcome.resume_token
        )
        return connection

    async def _greet(self) -> Connection:
        """In the newest version of the protocol that the server speaks."""
        refusals = []
        for protocol in range(self._hello.protocol, OLDEST_VERSION - 1, -1):
            try:
                return await self._greet_in(protocol)
            except ConnectionRefused as error:
                if error.code != "unsupported_protocol":
                    raise
                refusals.append(error)
        raise refusals[0]

    async def _greet_in(self, protocol: int) -> Connection:
        try:
            link = await self._dial()
        except LinkRefused as error:
            raise ConnectionRefused(error.code, str(error), error.retry_after_s) from error
        try:
            hello = msgspec.structs.replace(self._hello, protocol=protocol)
            welcome = await _shake_hands(link, hello)
            self._expect_same_profile(welcome)
            return Connection(link, welcome)
        except BaseException:
            await link.close()
            raise

    def _expect_same_profile(self, welcome: Welcome) -> None:
        if self._first is not None and welcome.profile != self._first.profile:
            raise ConnectionRefused(
                "profile_mismatch",
                f"the server has profile {welcome.profile} for codec {welcome.codec!r}, but this "
                f"session's packets are made by {self._first.profile}; begin a new session, and "
                "give servers that stand in for each other the same profiles",
            )


async def _shake_hands(link: Link, hello: Hello) -> Welcome:
    try:
        await link.send(encode(hello))
        answer = decode(await link.receive())
    except LinkClosed as error:
        raise ConnectionRefused(
            "unreachable", f"the server hung up before it answered: {error}"
        ) from error
    except ProtocolError as error:
        raise ConnectionRefused("protocol_error", str(error)) from error
    if isinstance(answer, Error):
        raise ConnectionRefused(answer.code, answer.message, answer.retry_after_s)
    if not isinstance(answer, Welcome):
        raise ConnectionRefused(
            "protocol_error", f"the server answered Hello with {type(answer).__name__}"
        )
    expected = {"protocol": hello.protocol, "codec": hello.codec}
    if hello.cut is not None:
        expected["cut"] = hello.cut
    for name, value in expected.items():
        if (chosen := getattr(answer, name)) != value:
            raise ConnectionRefused(
                "protocol_error", f"the server chose {name} {chosen} instead of {value}"
            )
    return answer


def _pauses(longest: float) -> Iterator[float]:
    """Seconds to wait between attempts to connect: anything up to a bound that doubles, so that
    the clients of a server that comes back do not come all at once."""
    while True:
        yield random.uniform(0.0, longest)
        longest = min(2 * longest, _LONGEST_PAUSE_S)
