"""SplitSession between a scripted head and a scripted server."""

import asyncio

import pytest
from split_peers import CODEC, CUT, Pair, ScriptedServer, answer, welcome

from sliceserve.client.errors import (
    ConnectionRefused,
    RequestFailed,
    RequestTimeout,
    SplitError,
)
from sliceserve.client.stats import RequestStats
from sliceserve.configs import SamplingParams
from sliceserve.engine.client import EngineDead
from sliceserve.engine.generation import GenerationError
from sliceserve.transport import messages as wire
from sliceserve.transport.frames import DataFrame
from sliceserve.transport.link import LinkRefused

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
TEN = SamplingParams(max_tokens=10)


async def test_the_cut_is_the_servers_and_the_head_ends_there(pair, server):
    (hello,) = server.sent(wire.Hello)
    assert (hello.fingerprint, hello.cut, hello.codec) == ("abc", None, CODEC)
    assert pair.session.welcome.cut == pair.head.cut == CUT
    assert pair.session.max_model_len == 100


@pytest.mark.parametrize("num_prompt", [1, 4, 11, 40])
@pytest.mark.parametrize("window", [1, 6, 100])
async def test_tokens_are_the_servers_whatever_credit_it_gives(pair, server, num_prompt, window):
    server.window = window
    prompt = list(range(num_prompt))
    assert await pair.generate(prompt, TEN) == answer(prompt, TEN)
    # The last token's hidden state is nobody's business.
    assert len(pair.head.encoded) == num_prompt + 9


async def test_many_requests_share_the_connection(pair, server):
    prompts = [list(range(i, 2 * i + 1)) for i in range(12)]
    results = await asyncio.gather(*(pair.generate(prompt, TEN) for prompt in prompts))
    assert results == [answer(prompt, TEN) for prompt in prompts]
    assert server.num_dials == 1


async def test_a_long_prompt_does_not_hold_up_the_others(pair, server):
    long, short = asyncio.gather(pair.generate(list(range(80)), TEN)), pair.generate([1], TEN)
    assert await short == answer([1], TEN)
    assert not long.done()
    await long


async def test_the_last_step_alone_has_the_finish_reason(pair):
    steps = [step async for step in pair.session.generate(PROMPT, TEN)]
    assert [step.finish_reason for step in steps] == [None] * 9 + ["length"]


async def test_repeated_tokens_are_ignored(pair, server):
    server.repeat_tokens = True
    assert await pair.generate(PROMPT, TEN) == answer(PROMPT, TEN)


@pytest.mark.parametrize("gap_at", [0, 5, 10, 15])
async def test_a_gap_is_sent_again(pair, server, gap_at):
    server.gap_at = gap_at
    assert await pair.generate(PROMPT, TEN) == answer(PROMPT, TEN)
    assert server.gap_at is None


async def test_a_seed_is_drawn_here_when_noise_needs_one(pair, server):
    await pair.generate(PROMPT, SamplingParams(max_tokens=1, temperature=0.7))
    await pair.generate(PROMPT, SamplingParams(max_tokens=1, temperature=0.7, seed=3))
    await pair.generate(PROMPT, SamplingParams(max_tokens=1))
    seeds = [message.sampling.seed for message in server.sent(wire.Open)]
    assert seeds[0] is not None
    assert seeds[1:] == [3, None]


async def test_the_answer_ends_at_the_context_limit(pair):
    prompt = list(range(95))
    assert len(await pair.generate(prompt, TEN)) == 5
    with pytest.raises(RequestFailed, match="at most 100") as refused:
        await pair.generate(list(range(100)), TEN)
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(RequestFailed, match="at least one token"):
        await pair.generate([], TEN)


async def test_a_refused_request_raises_what_the_server_said(pair, server):
    server.refuse_open = wire.Error(code="overloaded", message="no room", retry_after_s=1e6)
    with pytest.raises(GenerationError, match="no room") as refused:
        await pair.generate(PROMPT, TEN)
    assert (refused.value.code, refused.value.retry_after_s) == ("overloaded", 1e6)
    assert isinstance(refused.value, SplitError)
    server.refuse_open = None
    assert await pair.generate(PROMPT, TEN) == answer(PROMPT, TEN)


async def test_a_request_that_a_full_server_refuses_is_tried_again(pair, server):
    server.refuse_open = wire.Error(code="overloaded", message="no room", retry_after_s=0.01)
    running = asyncio.ensure_future(pair.generate(PROMPT, TEN))
    while len(server.sent(wire.Open)) < 3:
        await asyncio.sleep(0.005)
    server.refuse_open = None
    assert await running == answer(PROMPT, TEN)


async def test_a_request_is_tried_again_until_patience_ends(server):
    server.refuse_open = wire.Error(code="overloaded", message="no room", retry_after_s=0.02)
    pair = Pair(server, timeout_s=0.1)
    await pair.session.start()
    with pytest.raises(RequestFailed, match="no room"):
        await pair.generate(PROMPT, TEN)
    await pair.session.close()


async def test_a_request_without_credit_waits_longer_than_for_an_answer(server):
    server.window = 0
    pair = Pair(server, timeout_s=0.05)
    await pair.session.start()
    running = asyncio.ensure_future(pair.generate(PROMPT, TEN))
    await asyncio.sleep(0.2)
    assert not running.done()
    assert not server.sent(DataFrame)
    server.window = 6
    await server.grant_all()
    assert await running == answer(PROMPT, TEN)
    assert not server.violations
    await pair.session.close()


@pytest.mark.parametrize(
    "lie",
    [
        wire.Token(request_id=1, position=13, token_id=1),
        wire.Token(request_id=1, position=12, token_id=5000),
        wire.Token(request_id=1, position=12, token_id=1, finish_reason="tired"),
        wire.Want(request_id=1, next_position=50),
        wire.Opened(request_id=1, next_position=13, credit=99),
    ],
)
async def test_a_server_that_says_what_cannot_be_ends_the_request_alone(pair, server, lie):
    tokens = pair.session.generate(PROMPT, TEN)
    await anext(tokens)
    # Held back before the second token's packet: position 12 is the next to be answered.
    pair.head.live.clear()
    server.window = 0
    await server.say(lie)
    with pytest.raises(RequestFailed) as failed:
        async for _ in tokens:
            pass
    assert failed.value.code == "protocol_error"
    server.window = 6
    assert await pair.generate(PROMPT, TEN) == answer(PROMPT, TEN)


async def test_a_token_without_its_packet_is_refused(pair, server):
    server.silent = True
    tokens = pair.session.generate(PROMPT, TEN)
    first = asyncio.ensure_future(anext(tokens))
    await pair.settled()
    await server.say(wire.Token(request_id=1, position=len(PROMPT), token_id=1))
    with pytest.raises(RequestFailed, match="has had 0 packets"):
        await first


async def test_a_message_that_only_clients_send_ends_all(pair, server):
    first = asyncio.ensure_future(pair.generate(PROMPT, SamplingParams(max_tokens=80)))
    await pair.settled()
    await server.say(wire.Cancel(request_id=1))
    with pytest.raises(RequestFailed, match="sent a Cancel"):
        await first
    assert await pair.generate(PROMPT, TEN) == answer(PROMPT, TEN)


async def test_an_error_of_the_connection_ends_all_requests(pair, server):
    running = [asyncio.ensure_future(pair.generate([i], TEN)) for i in range(3)]
    server.silent = True
    await pair.settled()
    await server.say(wire.Error(code="session_expired", message="away too long"))
    results = await asyncio.gather(*running, return_exceptions=True)
    assert {(error.code, str(error)) for error in results} == {("session_expired", "away too long")}


async def test_silence_is_bounded(server):
    server.silent = True
    pair = Pair(server, timeout_s=0.05)
    await pair.session.start()
    with pytest.raises(RequestFailed, match="has not answered for") as failed:
        await pair.generate(PROMPT, TEN)
    assert failed.value.code == "timeout"
    await pair.session.close()


async def test_a_slow_caller_is_not_mistaken_for_a_silent_server(server):
    pair = Pair(server, timeout_s=0.05)
    await pair.session.start()
    tokens = []
    async for step in pair.session.generate(PROMPT, SamplingParams(max_tokens=3)):
        tokens.append(step.token.token_id)
        await asyncio.sleep(0.12)
    assert tokens == answer(PROMPT, TEN)[:3]
    await pair.session.close()


async def test_a_closed_generator_leaves_nothing(pair, server):
    tokens = pair.session.generate(PROMPT, TEN)
    await anext(tokens)
    assert server.live and pair.head.live
    await tokens.aclose()
    await pair.settled()
    assert not server.live and not pair.head.live
    assert pair.session.stats.num_live == 0


async def test_cancellation_passes_through_and_leaves_nothing(pair, server):
    server.silent = True
    running = asyncio.ensure_future(pair.generate(PROMPT, TEN))
    await pair.settled()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await pair.settled()
    assert [message.request_id for message in server.sent(wire.Cancel)] == [1]
    assert not pair.head.live


async def test_a_dead_head_fails_its_requests(pair, server):
    server.silent = True
    running = asyncio.ensure_future(pair.generate(PROMPT, TEN))
    await pair.settled()
    pair.head.die()
    with pytest.raises(RequestFailed, match="out of memory"):
        await running
    with pytest.raises(RequestFailed, match="out of memory"):
        await pair.generate(PROMPT, TEN)


async def test_a_draining_server_finishes_what_is_live(pair, server):
    tokens = pair.session.generate(PROMPT, TEN)
    got = [(await anext(tokens)).token.token_id]
    await server.say(wire.Drain(seconds=30.0))
    await pair.settled()
    with pytest.raises(RequestFailed, match="going away") as refused:
        await pair.generate(PROMPT, TEN)
    assert (refused.value.code, refused.value.retry_after_s) == ("draining", 30.0)
    got += [step.token.token_id async for step in tokens]
    assert got == answer(PROMPT, TEN)
    # Its successor, at the same address, is open to new ones.
    await server.drop_link()
    await pair.settled()
    assert await pair.generate(PROMPT, TEN) == got


async def test_close_ends_live_requests(pair, server):
    tokens = pair.session.generate(PROMPT, TEN)
    await anext(tokens)
    await pair.session.close()
    await pair.session.close()
    with pytest.raises(EngineDead):
        await pair.head.stats()
    with pytest.raises(RequestFailed) as failed:
        async for _ in tokens:
            pass
    assert failed.value.code == "closed"
    with pytest.raises(RequestFailed, match="closed"):
        await pair.generate(PROMPT, TEN)
    assert server.sent(wire.Bye)


@pytest.mark.parametrize(
    ("refusal", "code", "words"),
    [
        (wire.Error(code="fingerprint_mismatch", message="other"), "fingerprint_mismatch", "other"),
        (LinkRefused("give an API key", "unauthorized", 401), "unauthorized", "API key"),
        (LinkRefused("cannot reach it", "unreachable"), "unreachable", "cannot reach"),
    ],
)
async def test_a_refused_start_says_why(server, refusal, code, words):
    server.refuse = refusal
    pair = Pair(server, max_retries=0)
    with pytest.raises(ConnectionRefused, match=words) as refused:
        await pair.session.start()
    assert refused.value.code == code
    assert pair.head is None
    with pytest.raises(SplitError, match="start"):
        _ = pair.session.max_model_len


async def test_a_server_that_starts_late_is_called_again(server, monkeypatch):
    monkeypatch.setattr("sliceserve.client.connection._FIRST_PAUSE_S", 0.01)
    server.refuse = LinkRefused("starting", "draining", 503, retry_after_s=0.02)
    pair = Pair(server, max_retries=3)
    starting = asyncio.ensure_future(pair.session.start())
    while server.num_dials < 2:
        await asyncio.sleep(0.001)
    server.refuse = None
    await starting
    assert pair.session.state == "connected"
    assert await pair.generate(PROMPT, TEN) == answer(PROMPT, TEN)
    await pair.session.close()
    assert pair.session.state == "closed"


@pytest.mark.parametrize(
    ("refusal", "num_dials"),
    [
        (LinkRefused("nobody there", "unreachable"), 3),
        (LinkRefused("come back tomorrow", "overloaded", 429, retry_after_s=86400.0), 1),
        (LinkRefused("give an API key", "unauthorized", 401), 1),
        (wire.Error(code="fingerprint_mismatch", message="other"), 1),
    ],
)
async def test_a_start_is_tried_again_where_that_can_help(server, monkeypatch, refusal, num_dials):
    monkeypatch.setattr("sliceserve.client.connection._FIRST_PAUSE_S", 0.01)
    server.refuse = refusal
    with pytest.raises(ConnectionRefused):
        await Pair(server).session.start()
    assert server.num_dials == num_dials


async def test_a_request_ends_in_time_and_leaves_nothing(pair, server):
    server.window = 0
    stats = RequestStats()
    tokens = pair.session.generate(PROMPT, TEN, stats=stats, timeout_s=0.02)
    with pytest.raises(RequestTimeout, match="with 0 tokens") as failed:
        await anext(tokens)
    assert (failed.value.code, failed.value.may_retry) == ("timeout", True)
    await pair.settled()
    assert not server.live and not pair.head.live


async def test_tokens_that_came_in_time_are_delivered_before_the_timeout(pair, server):
    tokens = pair.session.generate(PROMPT, TEN, timeout_s=0.05)
    got = [(await anext(tokens)).token.token_id]
    server.silent = True
    await server.drop_link()
    with pytest.raises(RequestTimeout):
        async for step in tokens:
            got.append(step.token.token_id)
    assert got == answer(PROMPT, TEN)[: len(got)]
    server.silent = False


async def test_the_state_follows_the_line(pair, server):
    assert pair.session.state == "connected"
    await server.say(wire.Drain(seconds=30.0))
    await pair.settled()
    assert pair.session.state == "draining"
    await server.drop_link()
    await pair.settled()
    assert pair.session.state == "disconnected"
    assert await pair.generate(PROMPT, TEN) == answer(PROMPT, TEN)
    assert pair.session.state == "connected"


async def test_a_head_that_cannot_be_loaded_leaves_no_connection(server, monkeypatch):
    async def fail(self):
        raise EngineDead("no such model")

    pair = Pair(server)
    monkeypatch.setattr("split_peers.ScriptedHead.start", fail)
    with pytest.raises(SplitError, match="no such model"):
        await pair.session.start()
    assert len(server.sent(wire.Bye)) == 1


async def test_the_books_are_right(pair, server):
    stats = RequestStats()
    tokens = [step async for step in pair.session.generate(PROMPT, TEN, stats=stats)]
    assert (stats.num_requests, stats.num_prompt_tokens, stats.num_tokens) == (1, 11, 10)
    assert len(tokens) == 10
    assert stats.num_packets == 20
    frames = server.sent(DataFrame)
    assert sum(len(frame.packets) for frame in frames) == 20
    assert stats.bytes_up > sum(len(p) for frame in frames for p in frame.packets)
    assert stats.head_s == pytest.approx(0.020)
    assert stats.server_s == pytest.approx(0.005)
    assert stats.link_s >= 0.0
    assert stats.ttft_s > 0.0
    assert stats.tokens_per_s == pytest.approx(9 / stats.decode_s)
    total = pair.session.stats
    assert total.total == stats
    assert total.uplink_bytes_per_token == stats.bytes_up / 20
    assert total.downlink_bytes_per_token == stats.bytes_down / 10
    assert total.uplink_reduction_vs_fp16 == pytest.approx(32 / total.uplink_bytes_per_token)


async def test_bytes_are_those_of_the_link(server):
    pair = Pair(server)
    await pair.session.start()
    link = pair.session._line._connection._link
    up, down = link.bytes_sent, link.bytes_received
    await asyncio.gather(*(pair.generate(list(range(i)), TEN) for i in (3, 30)))
    total = pair.session.stats.total
    assert total.bytes_up == link.bytes_sent - up
    assert total.bytes_down == link.bytes_received - down
    await pair.session.close()


async def test_an_unknown_server_gets_no_second_chance_to_choose(pair):
    """The head is loaded up to one cut: another is refused, not served wrongly."""
    pair.server._welcome = lambda hello, token: welcome(
        protocol=1,
        cut=5,
        codec=hello.codec,
        max_frame_tokens=4,
        resume_token="other",
        resume_timeout_s=1.0,
    )
    await pair.server.drop_link()
    with pytest.raises(RequestFailed, match="cut 5 instead of 3") as failed:
        await pair.generate(PROMPT, TEN)
    assert failed.value.code == "protocol_error"


def test_scripted_server_hashes_every_packet():
    changed = [*PROMPT[:-1], 16]
    assert answer(PROMPT, TEN) != answer(changed, TEN)
    assert ScriptedServer().live == []
