import asyncio

import pytest

from sliceserve.transport.link import CloseCode, Link, LinkClosed, wire_bytes
from sliceserve.transport.loopback import loopback_pair

pytestmark = pytest.mark.usefixtures("no_leaked_tasks")


async def test_messages_arrive_in_order_both_ways() -> None:
    client, server = loopback_pair()
    for number in range(10):
        await client.send(b"up %d" % number)
        await server.send(b"down %d" % number)
    assert [await server.receive() for _ in range(10)] == [b"up %d" % n for n in range(10)]
    assert [await client.receive() for _ in range(10)] == [b"down %d" % n for n in range(10)]


async def test_both_ends_count_what_a_websocket_would_carry() -> None:
    client, server = loopback_pair()
    sizes = [0, 125, 126, 65535, 65536]
    for size in sizes:
        await client.send(bytes(size))
        await server.send(bytes(size))
    for _ in sizes:
        await server.receive()
        await client.receive()
    headers = 2 + 2 + 4 + 4 + 10
    assert client.bytes_sent == server.bytes_received == sum(sizes) + headers + 4 * len(sizes)
    assert client.bytes_received == server.bytes_sent == sum(sizes) + headers


def test_wire_bytes_of_a_masked_message() -> None:
    assert wire_bytes(300, from_client=True) == 308
    assert wire_bytes(300, from_client=False) == 304


async def test_a_full_line_holds_the_sender_back() -> None:
    client, server = loopback_pair(capacity=2)
    await client.send(b"1")
    await client.send(b"2")
    third = asyncio.create_task(client.send(b"3"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not third.done()
    assert await server.receive() == b"1"
    await third
    assert [await server.receive(), await server.receive()] == [b"2", b"3"]


async def test_the_end_comes_after_the_messages_before_it() -> None:
    client, server = loopback_pair()
    await client.send(b"last")
    await client.close(CloseCode.GOING_AWAY, "moving on")
    assert await server.receive() == b"last"
    for _ in range(2):
        with pytest.raises(LinkClosed, match="1001: moving on") as caught:
            await server.receive()
        assert (caught.value.code, caught.value.reason) == (1001, "moving on")
    with pytest.raises(LinkClosed):
        await server.send(b"too late")
    await client.close(CloseCode.PROTOCOL_ERROR, "the first close counts")
    with pytest.raises(LinkClosed, match="moving on"):
        await client.send(b"too late")


async def test_closing_wakes_those_who_wait() -> None:
    client, server = loopback_pair(capacity=1)
    await client.send(b"fills the line")
    waiting = [asyncio.create_task(client.send(b"x")), asyncio.create_task(client.receive())]
    await asyncio.sleep(0)
    await server.close(CloseCode.ABNORMAL)
    for result in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(result, LinkClosed)
        assert result.may_resume


async def test_an_abandoned_receive_loses_nothing() -> None:
    client, server = loopback_pair()
    waiting = asyncio.create_task(server.receive())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await client.send(b"kept")
    assert await server.receive() == b"kept"


@pytest.mark.parametrize(
    ("code", "may_resume"),
    [(1000, False), (1001, True), (1002, False), (1006, True), (1009, False), (1011, True)],
)
def test_a_lost_line_may_be_resumed_a_closed_one_not(code: int, may_resume: bool) -> None:
    assert LinkClosed(code).may_resume is may_resume


def test_a_loopback_is_a_link() -> None:
    ends: tuple[Link, Link] = loopback_pair()
    assert len(ends) == 2
