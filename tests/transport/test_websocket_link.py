import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

import pytest
from websockets.asyncio.server import Request, Response, ServerConnection, serve
from websockets.exceptions import ConnectionClosedError
from websockets.frames import Close

from sliceserve.transport.link import CloseCode, Link, LinkClosed, LinkRefused
from sliceserve.transport.messages import SUBPROTOCOL
from sliceserve.transport.proxy import ShapingProxy
from sliceserve.transport.websocket import connect, split_url

Handler = Callable[[ServerConnection], Awaitable[None]]
Answer = Callable[[ServerConnection, Request], Response | None]

pytestmark = pytest.mark.usefixtures("no_proxy_of_the_environment", "no_leaked_tasks")


@asynccontextmanager
async def running(
    handler: Handler, answer: Answer | None = None, subprotocol: str | None = SUBPROTOCOL
) -> AsyncIterator[str]:
    subprotocols = None if subprotocol is None else [subprotocol]
    # Servers that compress are offered nothing to compress with.
    async with serve(
        handler, "127.0.0.1", 0, subprotocols=subprotocols, process_request=answer
    ) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def test_messages_go_and_come_back_and_are_counted() -> None:
    async with running(echo) as url:
        link: Link = await connect(url)
        for size in (0, 1, 125, 126, 65536):
            await link.send(bytes(size))
            assert await link.receive() == bytes(size)
        payload = 0 + 1 + 125 + 126 + 65536
        assert link.bytes_received == payload + 2 + 2 + 2 + 4 + 10
        assert link.bytes_sent == link.bytes_received + 5 * 4
        await link.close()
        await link.close()


async def test_counted_bytes_are_those_on_the_socket() -> None:
    async def swallow(connection: ServerConnection) -> None:
        async for _ in connection:
            pass

    async with running(swallow) as url:
        port = int(url.rsplit(":", 1)[1])
        async with ShapingProxy("127.0.0.1", port) as proxy:
            link = await connect(f"http://127.0.0.1:{proxy.port}")
            handshake = proxy.bytes_up
            for size in (5, 200, 70_000):
                await link.send(bytes(size))
            await link.close(CloseCode.NORMAL)
            # The frame of a close code: 2 of header, 4 of mask, 2 of code.
            assert proxy.bytes_up - handshake == link.bytes_sent + 8


async def test_what_the_handshake_asks_for() -> None:
    seen: list[Request] = []

    def look(connection: ServerConnection, request: Request) -> None:
        seen.append(request)

    async with running(echo, look) as url:
        link = await connect(url, api_key="secret")
        assert seen[0].path == "/v1/split"
        assert seen[0].headers["Authorization"] == "Bearer secret"
        assert seen[0].headers["Sec-WebSocket-Protocol"] == SUBPROTOCOL
        assert "Sec-WebSocket-Extensions" not in seen[0].headers
        tcp = link._connection.transport.get_extra_info("socket")
        assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await link.close()


async def test_the_servers_close_tells_code_and_reason() -> None:
    async def leave(connection: ServerConnection) -> None:
        await connection.send(b"last words")
        await connection.close(1001, "going away")

    async with running(leave) as url:
        link = await connect(url)
        assert await link.receive() == b"last words"
        for _ in range(2):
            with pytest.raises(LinkClosed) as caught:
                await link.receive()
            assert (caught.value.code, caught.value.reason) == (1001, "going away")
        with pytest.raises(LinkClosed, match="1001"):
            await link.send(b"x")


async def test_our_close_tells_code_and_a_reason_of_any_length() -> None:
    ends: asyncio.Queue[tuple[int | None, str | None]] = asyncio.Queue()

    async def wait(connection: ServerConnection) -> None:
        await connection.wait_closed()
        ends.put_nowait((connection.close_code, connection.close_reason))

    async with running(wait) as url:
        link = await connect(url)
        await link.close(CloseCode.PROTOCOL_ERROR, "é" * 100)
        assert await ends.get() == (1002, "é" * 61)


async def test_when_both_close_at_once_the_servers_word_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(echo) as url:
        link = await connect(url)

        async def crossed() -> bytes:
            raise ConnectionClosedError(Close(1011, "theirs"), Close(1000, "ours"), False)

        monkeypatch.setattr(link._connection, "recv", crossed)
        with pytest.raises(LinkClosed, match="1011: theirs"):
            await link.receive()
        await link.close()


async def test_a_lost_connection_is_code_1006() -> None:
    async def vanish(connection: ServerConnection) -> None:
        await connection.recv()
        connection.transport.abort()

    async with running(vanish) as url:
        link = await connect(url)
        await link.send(b"x")
        with pytest.raises(LinkClosed) as caught:
            await link.receive()
        assert caught.value.code == 1006
        assert caught.value.may_resume


async def test_too_large_and_text_messages_end_the_link() -> None:
    async def large(connection: ServerConnection) -> None:
        await connection.send(bytes(1001))
        await connection.wait_closed()

    async def text(connection: ServerConnection) -> None:
        await connection.send("hello")
        await connection.wait_closed()

    for handler, code in ((large, 1009), (text, 1003)):
        async with running(handler) as url:
            link = await connect(url, max_size=1000)
            with pytest.raises(LinkClosed) as caught:
                await link.receive()
            assert caught.value.code == code
            assert not caught.value.may_resume


@pytest.mark.parametrize(
    ("status", "body", "code", "says"),
    [
        (401, '{"error": {"message": "no such key"}}', "unauthorized", "401: no such key; check"),
        (403, '{"detail": "not you"}', "unauthorized", "403: not you; check the API key"),
        (404, "", "not_found", "404; check the address"),
        (429, '{"error": "full"}', "overloaded", "429: full; try again in 7 s"),
        (503, "[" * 5000, "draining", "503: \\[\\[.*; try again in 7 s"),
        (500, "oops", "unreachable", "500: oops; look into the server's log"),
        (200, "<html>", "protocol_error", "200: <html>; look"),
    ],
)
async def test_a_refusal_says_what_the_server_said_and_what_to_do(
    status: int, body: str, code: str, says: str
) -> None:
    def refuse(connection: ServerConnection, request: Request) -> Response:
        response = connection.respond(HTTPStatus(status), body)
        response.headers["Retry-After"] = "7"
        return response

    async with running(echo, refuse) as url:
        with pytest.raises(LinkRefused, match=says) as caught:
            await connect(url, api_key="k")
    assert (caught.value.code, caught.value.status) == (code, status)
    assert caught.value.retry_after_s == 7.0
    assert "127.0.0.1" in str(caught.value)


async def test_a_refusal_without_a_key_asks_for_one() -> None:
    def refuse(connection: ServerConnection, request: Request) -> Response:
        response = connection.respond(HTTPStatus.UNAUTHORIZED, "")
        response.headers["Retry-After"] = "Fri, 31 Dec 1999 23:59:59 GMT"
        return response

    async with running(echo, refuse) as url:
        with pytest.raises(LinkRefused, match="give an API key") as caught:
            await connect(url)
    assert caught.value.retry_after_s is None


async def test_a_server_that_speaks_no_subprotocol_is_refused() -> None:
    async with running(echo, subprotocol=None) as url:
        with pytest.raises(LinkRefused, match=f"does not speak {SUBPROTOCOL}") as caught:
            await connect(url)
    assert caught.value.code == "protocol_error"


async def test_nobody_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(LinkRefused, match=f"cannot reach ws://127.0.0.1:{port}") as caught:
            await connect(f"http://127.0.0.1:{port}")
    assert caught.value.code == "unreachable"


async def test_a_server_that_says_nothing_or_hangs_up_or_talks_of_something_else() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.close()

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 smtp ready\r\n\r\n")
        await reader.read()
        writer.close()

    cases = [
        (silent, "did not answer within 0.05 s", "unreachable"),
        (hang_up, "hung up during the handshake|cannot reach", "unreachable"),
        (babble, "did not open a WebSocket", "protocol_error"),
    ]
    for handler, says, code in cases:
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(LinkRefused, match=says) as caught:
                timeout_s = 0.05 if handler is silent else 10.0
                await connect(f"http://127.0.0.1:{port}", timeout_s=timeout_s)
            assert caught.value.code == code


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://host:8000", "ws://host:8000/v1/split"),
        ("https://host/", "wss://host/v1/split"),
        ("https://host/models/one/", "wss://host/models/one/v1/split"),
        ("http://host/v1", "ws://host/v1/split"),
        ("ws://host/v1/split", "ws://host/v1/split"),
        ("http://[::1]:80", "ws://[::1]:80/v1/split"),
    ],
)
def test_split_url(url: str, expected: str) -> None:
    assert split_url(url) == expected


@pytest.mark.parametrize(
    "url", ["", "host:8000", "localhost", "ftp://host", "http://", "http://host?x=1", "/v1/split"]
)
def test_an_address_that_cannot_be_right(url: str) -> None:
    with pytest.raises(ValueError, match="must look like http://host:8000"):
        split_url(url)


@pytest.mark.parametrize("api_key", ["two\r\nlines", "schlüssel"])
async def test_a_key_that_cannot_be_right(api_key: str) -> None:
    with pytest.raises(ValueError, match="API key"):
        await connect("http://127.0.0.1:1", api_key=api_key)
