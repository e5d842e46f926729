"""The client's end of a WebSocket to a server."""

import json
import ssl
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websocket_connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidProxy,
    InvalidStatus,
    InvalidURI,
)
from websockets.typing import Subprotocol

from sliceserve.transport.frames import MAX_FRAME_BYTES
from sliceserve.transport.link import CloseCode, LinkClosed, LinkRefused, wire_bytes
from sliceserve.transport.messages import SUBPROTOCOL

PATH = "/v1/split"
# A mobile line may fall silent for several seconds without being lost.
PING_INTERVAL_S = 10.0
PING_TIMEOUT_S = 20.0
CLOSE_TIMEOUT_S = 5.0
# RFC 6455: a control frame carries 125 bytes, two of which are the code.
_MAX_REASON_BYTES = 123
_MAX_QUOTED_CHARACTERS = 300


def tls_context(ca_certs: str | None) -> ssl.SSLContext:
    """How servers are checked: by the system's certificates, or by those in the PEM file
    ``ca_certs`` alone. Raises ValueError for a file that cannot be used."""
    try:
        return ssl.create_default_context(cafile=ca_certs)
    except OSError as error:
        raise ValueError(
            f"ssl_ca_certs {ca_certs}: {error.strerror or error}; it must be a file with "
            "certificates in PEM"
        ) from error


class WebSocketLink:
    """A link over an open connection; see `Link`. Made by `connect`."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._bytes_sent = 0
        self._bytes_received = 0

    @property
    def bytes_sent(self) -> int:
        return self._bytes_sent

    @property
    def bytes_received(self) -> int:
        return self._bytes_received

    async def send(self, data: bytes) -> None:
        try:
            await self._connection.send(data)
        except ConnectionClosed as error:
            raise _link_closed(error) from error
        self._bytes_sent += wire_bytes(len(data), from_client=True)

    async def receive(self) -> bytes:
        try:
            data = await self._connection.recv()
        except ConnectionClosed as error:
            raise _link_closed(error) from error
        if isinstance(data, str):
            reason = f"a text message; {SUBPROTOCOL} has only binary ones"
            await self.close(CloseCode.UNSUPPORTED_DATA, reason)
            raise LinkClosed(CloseCode.UNSUPPORTED_DATA, f"the server sent {reason}")
        self._bytes_received += wire_bytes(len(data), from_client=False)
        return data

    async def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        # A reason cut within a character loses that character.
        short = reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
        await self._connection.close(code, short)


def split_url(url: str) -> str:
    """The WebSocket address of the server at base address ``url``.

    ``http(s)://host[:port][/prefix][/v1]`` → ``ws(s)://host[:port][/prefix]/v1/split``. ValueError
    for anything else.
    """
    parts = urlsplit(url)
    schemes = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
    if parts.scheme not in schemes or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(
            f"the server's address must look like http://host:8000 or https://host, got {url!r}"
        )
    prefix = parts.path.rstrip("/").removesuffix(PATH).removesuffix("/v1")
    return urlunsplit((schemes[parts.scheme], parts.netloc, prefix + PATH, "", ""))


async def connect(
    url: str,
    api_key: str | None = None,
    timeout_s: float = 10.0,
    max_size: int = MAX_FRAME_BYTES,
    ca_certs: str | None = None,
) -> WebSocketLink:
    """Open a link to the server at base address ``url`` within ``timeout_s`` seconds.

    ``max_size`` bounds one received message, in bytes. ``ca_certs`` as in `tls_context`. The proxy
    of the environment is used, if one is set. Raises LinkRefused, or ValueError for an address, a
    key or a file of certificates that cannot be right.
    """
    target = split_url(url)
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        raise ValueError("the API key has characters that no HTTP header carries; copy it again")
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    try:
        # asyncio sets TCP_NODELAY on every TCP socket that it opens.
        connection = await websocket_connect(
            target,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            compression=None,
            additional_headers=headers,
            open_timeout=timeout_s,
            ping_interval=PING_INTERVAL_S,
            ping_timeout=PING_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
            max_size=max_size,
            ssl=tls_context(ca_certs) if target.startswith("wss:") else None,
        )
    except InvalidStatus as error:
        raise _refused_by_status(target, api_key is not None, error) from error
    except TimeoutError as error:
        raise LinkRefused(
            f"{target} did not answer within {timeout_s:g} s; check the address, the network and "
            "the server's load, or allow more time",
            "unreachable",
        ) from error
    except ssl.SSLCertVerificationError as error:
        raise LinkRefused(
            f"the certificate of {target} is not to be trusted: {error.verify_message}; if it is "
            "the right server, name the file with its issuer's certificate in ssl_ca_certs",
            "untrusted",
        ) from error
    except OSError as error:
        raise LinkRefused(
            f"cannot reach {target}: {error}; check that `sliceserve serve` runs there and that "
            "the address, the port and the firewall are right",
            "unreachable",
        ) from error
    except (InvalidHandshake, InvalidURI, InvalidProxy) as error:
        if isinstance(error.__cause__, EOFError):
            raise LinkRefused(
                f"{target} hung up during the handshake; the server may be starting or stopping, "
                "try again",
                "unreachable",
            ) from error
        raise LinkRefused(
            f"{target} did not open a WebSocket: {error}; check that the address is that of a "
            "SliceServe server and that any proxy before it passes WebSockets on",
            "protocol_error",
        ) from error
    if connection.subprotocol != SUBPROTOCOL:
        await connection.close(CloseCode.PROTOCOL_ERROR)
        raise LinkRefused(
            f"{target} opened a WebSocket but does not speak {SUBPROTOCOL}; check the address, "
            "and that client and server are of the same version",
            "protocol_error",
        )
    return WebSocketLink(connection)


def _link_closed(error: ConnectionClosed) -> LinkClosed:
    # What the other side said counts before what was said to it.
    end = error.rcvd or error.sent
    if end is None:
        return LinkClosed(CloseCode.ABNORMAL, "the connection was lost")
    return LinkClosed(end.code, end.reason)


def _refused_by_status(target: str, has_key: bool, error: InvalidStatus) -> LinkRefused:
    response = error.response
    status = response.status_code
    wait_s = _seconds(response.headers.get("Retry-After"))
    if status in (401, 403):
        code = "unauthorized"
        advice = "check the API key" if has_key else "give an API key"
    elif status == 404:
        code = "not_found"
        advice = "check the address, and that the server offers split serving"
    elif status in (429, 503):
        code = "overloaded" if status == 429 else "draining"
        advice = "try again later" if wait_s is None else f"try again in {wait_s:g} s"
    else:
        code = "unreachable" if status >= 500 else "protocol_error"
        advice = "look into the server's log, or into that of the proxy before it"
    said = _quote(bytes(response.body))
    return LinkRefused(f"{target} refused with HTTP {status}{said}; {advice}", code, status, wait_s)


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; its other form, a date, is left to the caller's own patience."""
    return float(header) if header is not None and header.isdecimal() else None


def _quote(body: bytes) -> str:
    """What the server said in its answer, after a colon, or nothing: the message of an OpenAI
    error, the detail of a FastAPI one, or the text itself."""
    text = body.decode(errors="replace").strip()
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        answer = text
    if isinstance(answer, dict):
        answer = answer.get("error", answer.get("detail", text))
    if isinstance(answer, dict):
        answer = answer.get("message", text)
    quoted = str(answer)[:_MAX_QUOTED_CHARACTERS]
    return f": {quoted}" if quoted else ""
