"""What a client tells its server of where the time of tokens went."""

import pytest
from split_peers import Pair, ScriptedServer, welcome

from sliceserve.client.request import SplitRequest
from sliceserve.client.stats import RequestStats, TokenParts
from sliceserve.client.telling import TimesTeller
from sliceserve.configs import SamplingParams
from sliceserve.engine.messages import TokenTimes
from sliceserve.transport import messages as wire

TEN = SamplingParams(max_tokens=10)


async def told(protocol):
    server = ScriptedServer()
    pair = Pair(server, protocol=protocol)
    await pair.session.start()
    await pair.generate([5, 6, 7], TEN)
    await pair.generate([5, 6, 7], TEN)
    await pair.session.close()
    await pair.settled()
    return server.sent(wire.Times)


async def test_it_tells_of_all_tokens_but_the_first_of_each_request():
    assert sum(times.num_tokens for times in await told(wire.PROTOCOL_VERSION)) == 2 * 9


@pytest.mark.parametrize("protocol", [1, 2])
async def test_a_server_that_does_not_know_the_message_is_not_sent_it(protocol):
    assert await told(protocol) == []


def test_each_token_is_told_of_once():
    teller = TimesTeller()
    assert teller.is_due(0.0)
    assert teller.tell(TokenParts(), 0.0) is None
    assert not teller.is_due(4.9)
    teller.hurry()
    assert teller.is_due(0.0)
    parts = TokenParts(3, head_s=0.5, encode_s=0.25, link_s=2.0, tail_s=9.0)
    assert teller.tell(parts, 1.0) == wire.Times(
        num_tokens=3, head_us=500_000, encode_us=250_000, link_us=2_000_000
    )
    more = parts + TokenParts(1, link_s=1.0)
    assert teller.tell(more, 7.0) == wire.Times(num_tokens=1, link_us=1_000_000)
    assert teller.tell(more, 8.0) is None


def token(position, times=None):
    return wire.Token(request_id=1, position=position, token_id=7, server_us=4000, times=times)


@pytest.mark.parametrize(
    ("times", "link_s", "queue_s", "tail_s", "sample_s"),
    [
        (wire.TokenTimes(1_000_000, 2_000_000, 500_000), 6.5, 1.0, 2.0, 0.5),
        # An older server says how long it was busy, and not with what.
        (None, 9.996, 0.0, 0.004, 0.0),
        # Clocks differ; nobody gains time.
        (wire.TokenTimes(20_000_000, 0, 0), 0.0, 20.0, 0.0, 0.0),
    ],
)
def test_what_is_not_the_servers_was_the_links(times, link_s, queue_s, tail_s, sample_s):
    limits = welcome()
    stats = RequestStats()
    request = SplitRequest(1, [5], TEN, stats, 0.0)
    request.begin([])
    request.take_packets(0, [b"a"])
    request.count_head(0, TokenTimes(1, 9.0, 9.0, 9.0))
    request.next_message(limits, 0.0)
    request.open(0, 100, 0.0)
    request.next_message(limits, 1.0)
    request.take_token(token(1), 5.0)
    assert stats.parts == TokenParts()
    request.take_packets(1, [b"b"])
    request.count_head(1, TokenTimes(1, 0.25, 0.5, 0.125))
    request.next_message(limits, 10.0)
    request.take_token(token(2, times), 20.0)
    expected = TokenParts(1, 0.75, 0.125, link_s, queue_s, tail_s, sample_s)
    assert stats.parts.num_tokens == 1
    assert list(stats.parts.seconds.values()) == pytest.approx(list(expected.seconds.values()))
