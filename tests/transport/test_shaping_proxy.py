import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from fake_clock import FakeClock
from websockets.asyncio.server import ServerConnection, serve

from sliceserve.transport.link import LinkClosed, LinkRefused
from sliceserve.transport.messages import SUBPROTOCOL
from sliceserve.transport.proxy import ShapingProxy
from sliceserve.transport.shaping import LinkShape
from sliceserve.transport.websocket import connect

pytestmark = pytest.mark.usefixtures("no_proxy_of_the_environment", "no_leaked_tasks")


@asynccontextmanager
async def echo_server() -> AsyncIterator[int]:
    """Sends back what it gets, then what it got in all, then closes."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        total = 0
        try:
            while data := await reader.read(1 << 16):
                total += len(data)
                writer.write(data)
                await writer.drain()
            writer.write(b"total %d" % total)
            writer.close()
        except ConnectionError:
            writer.transport.abort()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_bytes_pass_unchanged_and_are_counted() -> None:
    async with echo_server() as port, ShapingProxy("127.0.0.1", port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        sent = bytes(range(256)) * 1000
        writer.write(sent)
        writer.write_eof()
        # The end of one direction leaves the other open.
        assert await reader.read() == sent + b"total 256000"
        assert (proxy.bytes_up, proxy.bytes_down) == (256_000, 256_012)
        writer.close()
        await writer.wait_closed()


async def test_what_passes_takes_its_time(clock: FakeClock) -> None:
    shape = LinkShape(up_mbps=0.008, down_mbps=0.08, delay_ms=500)
    async with echo_server() as port, ShapingProxy("127.0.0.1", port, shape, clock) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        start = clock.now()
        writer.write(bytes(1000))
        echoed = asyncio.create_task(reader.readexactly(1000))
        while not echoed.done():
            await asyncio.sleep(0.001)
            await clock.advance(0.1)
        # A second up, a tenth down, twice the delay; the clock moves by tenths.
        assert clock.now() - start >= 2.1
        writer.transport.abort()


async def test_cut_breaks_both_ends_and_lets_new_connections_in() -> None:
    ends = asyncio.Queue[int | None]()

    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)
        ends.put_nowait(connection.close_code)

    async with (
        serve(echo, "127.0.0.1", 0, subprotocols=[SUBPROTOCOL]) as server,
        ShapingProxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy,
    ):
        url = f"http://127.0.0.1:{proxy.port}"
        for _ in range(2):
            links = [await connect(url), await connect(url)]
            for link in links:
                await link.send(b"hello")
                assert await link.receive() == b"hello"
            assert proxy.num_connections == 2
            await proxy.cut()
            assert proxy.num_connections == 0
            for link in links:
                with pytest.raises(LinkClosed) as caught:
                    await link.receive()
                assert caught.value.may_resume


async def test_a_stall_holds_and_resume_lets_go() -> None:
    async with echo_server() as port, ShapingProxy("127.0.0.1", port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"before")
        assert await reader.readexactly(6) == b"before"
        proxy.stall()
        writer.write(b"during")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(reader.readexactly(1), 0.05)
        assert proxy.bytes_up == 6
        proxy.resume()
        assert await reader.readexactly(6) == b"during"
        writer.transport.abort()


async def test_stop_while_stalled_leaves_nothing_behind() -> None:
    async with echo_server() as port:
        proxy = ShapingProxy("127.0.0.1", port)
        await proxy.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        proxy.stall()
        writer.write(bytes(1 << 20))
        await asyncio.sleep(0)
        address = proxy.port
        await proxy.stop()
        await proxy.stop()
        with pytest.raises(RuntimeError, match="not running"):
            assert proxy.port
        # Either a reset or an end of file, as the kernel likes.
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", address)
        writer.transport.abort()


async def test_a_target_that_is_down_is_a_refused_link() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with ShapingProxy("127.0.0.1", unused.getsockname()[1]) as proxy:
            with pytest.raises(LinkRefused) as caught:
                await connect(f"http://127.0.0.1:{proxy.port}")
            assert caught.value.code == "unreachable"
