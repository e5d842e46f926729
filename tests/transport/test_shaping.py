import asyncio

import pytest
from fake_clock import FakeClock

from sliceserve.transport.link import CloseCode, Link, LinkClosed
from sliceserve.transport.loopback import loopback_pair
from sliceserve.transport.rates import RateTrace
from sliceserve.transport.shaping import SEND_BUFFER_BYTES, Bottleneck, LinkShape, ShapedLink

pytestmark = pytest.mark.usefixtures("no_leaked_tasks")


def arrivals(
    shape: LinkShape, pieces: list[tuple[float, int]], direction: str = "up"
) -> list[float]:
    bottleneck = Bottleneck(shape, direction)
    return [bottleneck.enter(size, now).arrival_s for now, size in pieces]


def test_no_shape_is_no_delay() -> None:
    assert arrivals(LinkShape(), [(0.5, 10**9), (0.5, 1)]) == [0.5, 0.5]


def test_rate_queues_and_delay_does_not() -> None:
    shape = LinkShape(up_mbps=8.0, down_mbps=0.8, delay_ms=50)
    pieces = [(0.0, 1000), (0.0, 1000), (0.0105, 1000)]
    assert arrivals(shape, pieces) == pytest.approx([0.051, 0.052, 0.0615])
    assert arrivals(shape, pieces, "down") == pytest.approx([0.06, 0.07, 0.08])


def test_jitter_is_the_seeds_and_keeps_the_order() -> None:
    pieces = [(0.001 * index, 100) for index in range(200)]
    shape = LinkShape(delay_ms=10, jitter_ms=40, seed=1)
    times = arrivals(shape, pieces)
    assert times == arrivals(shape, pieces)
    assert times != arrivals(LinkShape(delay_ms=10, jitter_ms=40, seed=2), pieces)
    assert times != arrivals(shape, pieces, "down")
    assert times == sorted(times)
    waits = [arrived - sent for arrived, (sent, _) in zip(times, pieces, strict=True)]
    assert 0.01 <= min(waits) < max(waits) < 0.05


def test_outages_hold_both_directions() -> None:
    shape = LinkShape(up_mbps=8.0, outages=((1.0, 2.0), (4.0, 1.0)))
    # 1 MB takes a second: half before the first outage, half after it.
    assert arrivals(shape, [(0.5, 10**6)]) == pytest.approx([3.5])
    assert arrivals(shape, [(0.5, 2 * 10**6)]) == pytest.approx([5.5])
    assert arrivals(shape, [(0.0, 10**6), (2.0, 1000)]) == pytest.approx([1.0, 3.001])
    assert arrivals(shape, [(0.5, 10**6), (1.5, 1), (9.0, 1)], "down") == [0.5, 3.0, 9.0]


def test_a_trace_shapes_the_uplink_alone() -> None:
    shape = LinkShape(up_trace=RateTrace((1.0, 1.0), (8.0, 0.0)))
    assert arrivals(shape, [(0.0, 1_500_000)]) == pytest.approx([2.5])
    assert arrivals(shape, [(0.0, 1_500_000)], "down") == [0.0]


def test_outages_interrupt_a_trace_that_goes_on() -> None:
    shape = LinkShape(up_trace=RateTrace((1.0, 1.0), (8.0, 4.0)), outages=((0.5, 1.0),))
    # 4 Mbit before the outage; after it half a second at 4 Mbit/s, then 8 Mbit/s.
    assert arrivals(shape, [(0.0, 1_000_000)]) == pytest.approx([2.25])


def test_the_sender_waits_when_its_buffer_is_full() -> None:
    bottleneck = Bottleneck(LinkShape(up_mbps=8.0), "up")
    half = SEND_BUFFER_BYTES // 2
    seconds = half / 1e6
    assert bottleneck.enter(half, 0.0).room_s == 0.0
    assert bottleneck.enter(half, 0.0).room_s == 0.0
    assert bottleneck.enter(half, 0.0).room_s == pytest.approx(seconds)
    assert bottleneck.enter(half, 0.0).room_s == pytest.approx(2 * seconds)
    assert bottleneck.enter(10 * half, 0.0).room_s == pytest.approx(14 * seconds)


@pytest.mark.parametrize(
    "wrong",
    [
        {"up_mbps": 0.0},
        {"down_mbps": -1.0},
        {"delay_ms": -1.0},
        {"jitter_ms": float("nan")},
        {"outages": ((1.0, 0.0),)},
        {"outages": ((1.0, 2.0), (2.5, 1.0))},
        {"up_mbps": 1.0, "up_trace": RateTrace((1.0,), (1.0,))},
    ],
)
def test_a_shape_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        LinkShape(**wrong)  # type: ignore[arg-type]


async def test_a_shaped_link_takes_its_time_both_ways(clock: FakeClock) -> None:
    client, server = loopback_pair()
    shape = LinkShape(up_mbps=8.0, down_mbps=80.0, delay_ms=20)
    link: Link = ShapedLink(client, shape, clock)
    start = clock.now()
    for _ in range(3):
        await link.send(bytes(10_000))
    times = []
    for _ in range(3):
        assert await clock.run(server.receive()) == bytes(10_000)
        times.append(clock.now() - start)
    # Messages with their 8 or 4 bytes of framing, as they would be on a WebSocket.
    assert times == pytest.approx([0.030008, 0.040016, 0.050024])
    await server.send(bytes(10_000))
    assert await clock.run(link.receive()) == bytes(10_000)
    assert clock.now() - start == pytest.approx(0.050024 + 0.0010004 + 0.02)
    assert (link.bytes_sent, link.bytes_received) == (client.bytes_sent, client.bytes_received)
    assert link.bytes_sent == 3 * 10_008
    await link.close()


async def test_many_senders_keep_their_order(clock: FakeClock) -> None:
    client, server = loopback_pair()
    link = ShapedLink(client, LinkShape(up_mbps=1.0, jitter_ms=30), clock)
    messages = [bytes([number]) * 30_000 for number in range(12)]
    senders = [asyncio.create_task(link.send(message)) for message in messages]
    got = [await clock.run(server.receive()) for _ in messages]
    assert got == messages
    for sender in senders:
        await sender
    await link.close()


async def test_a_slow_line_holds_the_sender_back(clock: FakeClock) -> None:
    client, _ = loopback_pair()
    link = ShapedLink(client, LinkShape(up_mbps=8.0), clock)
    start = clock.now()
    fills_the_buffer = bytes(SEND_BUFFER_BYTES - 8)
    await link.send(fills_the_buffer)
    assert clock.now() == start
    await clock.run(link.send(fills_the_buffer))
    assert clock.now() - start == pytest.approx(SEND_BUFFER_BYTES / 1e6)
    await clock.run(link.close())


async def test_closing_waits_for_what_is_under_way(clock: FakeClock) -> None:
    client, server = loopback_pair()
    link = ShapedLink(client, LinkShape(delay_ms=1000), clock)
    await link.send(b"bye")
    await clock.run(link.close(CloseCode.GOING_AWAY, "done"))
    await link.close()
    assert await server.receive() == b"bye"
    with pytest.raises(LinkClosed, match="1001: done"):
        await server.receive()
    for attempt in (link.send(b"x"), link.receive()):
        with pytest.raises(LinkClosed):
            await attempt


async def test_the_other_sides_end_arrives_behind_its_messages(clock: FakeClock) -> None:
    client, server = loopback_pair()
    link = ShapedLink(client, LinkShape(delay_ms=100), clock)
    start = clock.now()
    await server.send(b"last")
    await server.close(CloseCode.INTERNAL_ERROR, "broken")
    assert await clock.run(link.receive()) == b"last"
    assert clock.now() - start == pytest.approx(0.1)
    with pytest.raises(LinkClosed, match="1011: broken"):
        await clock.run(link.receive())
    await clock.settle()
    with pytest.raises(LinkClosed, match="1011: broken"):
        await link.send(b"x")
    await link.close()
