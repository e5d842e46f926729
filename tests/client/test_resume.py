"""A link that drops in mid-answer: the same tokens, from the same packets."""

import asyncio

import pytest
from split_peers import answer

from sliceserve.client.errors import RequestFailed
from sliceserve.configs import Patience, SamplingParams
from sliceserve.transport import messages as wire
from sliceserve.transport.frames import DataFrame
from sliceserve.transport.link import CloseCode, LinkRefused

PROMPT = list(range(20, 31))
SAMPLED = SamplingParams(max_tokens=10, temperature=1.0, seed=7)


@pytest.mark.parametrize("forgetful", [False, True])
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("token", [1, 2, 9, 10])
async def test_a_cut_link_changes_nothing(pair, server, forgetful, moment, token):
    server.forgetful = forgetful
    getattr(server, f"cut_{moment}").add(token)
    assert await pair.generate(PROMPT, SAMPLED) == answer(PROMPT, SAMPLED)
    # Not one hidden state was computed or encoded twice.
    positions = [position for _, position in pair.head.encoded]
    assert positions == list(range(len(PROMPT) + 9))
    assert pair.head.num_starts == 1


async def test_a_kept_session_gets_only_what_it_lacks(pair, server):
    server.cut_after = {3}
    await pair.generate(PROMPT, SAMPLED)
    assert sum(len(frame.packets) for frame in server.sent(DataFrame)) == len(PROMPT) + 9
    assert server.num_sessions == 1
    tokens = [hello.resume_token for hello in server.sent(wire.Hello)]
    assert tokens == [None, "secret-1"]


async def test_a_lost_session_is_replayed_byte_for_byte(pair, server):
    server.cut_after = {3}
    server.forgetful = True
    await pair.generate(PROMPT, SAMPLED)
    sent = {}
    for frame in server.sent(DataFrame):
        for position, packet in enumerate(frame.packets, frame.first_position):
            assert sent.setdefault(position, packet) == packet
    assert len(server.sent(DataFrame)) > 13
    assert server.num_sessions == 2
    again = server.sent(wire.Open)[-1]
    assert again.outputs == answer(PROMPT, SAMPLED)[:3]
    assert again.sampling.seed == 7


async def test_every_live_request_comes_back(pair, server):
    server.cut_before = {5, 40}
    server.cut_after = {13, 14, 30}
    prompts = [[i, i + 1] for i in range(6)]
    results = await asyncio.gather(*(pair.generate(prompt, SAMPLED) for prompt in prompts))
    assert results == [answer(prompt, SAMPLED) for prompt in prompts]
    assert pair.session.stats.num_reconnects == server.num_dials - 1 >= 4


async def test_a_request_closed_without_a_link_is_cancelled_later(pair, server):
    tokens = pair.session.generate(PROMPT, SAMPLED)
    await anext(tokens)
    server.refuse = LinkRefused("down", "unreachable")
    await server.drop_link()
    await pair.settled()
    await tokens.aclose()
    assert server.live == [1]
    server.refuse = None
    assert await pair.generate([1], SAMPLED) == answer([1], SAMPLED)
    assert server.live == []


async def test_a_request_closed_before_it_was_announced_never_is(pair, server):
    server.refuse = LinkRefused("down", "unreachable")
    await server.drop_link()
    await pair.settled()
    running = asyncio.ensure_future(pair.generate(PROMPT, SAMPLED))
    await pair.settled()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    server.refuse = None
    await pair.generate([1], SAMPLED)
    assert [message.request_id for message in server.sent(wire.Open)] == [2]
    assert not server.sent(wire.Cancel)


async def test_a_server_that_stays_away_fails_the_request(pair, server):
    server.cut_after = {2}
    tokens = pair.session.generate(PROMPT, SAMPLED)
    got = [(await anext(tokens)).token.token_id]
    server.refuse = LinkRefused("nobody there", "unreachable")
    pair.session._line._dialer._patience = Patience(resume_timeout_s=0.2)
    with pytest.raises(RequestFailed, match="nobody there") as failed:
        async for step in tokens:
            got.append(step.token.token_id)
    assert failed.value.code == "server_unreachable"
    # What had arrived was still delivered.
    assert got == answer(PROMPT, SAMPLED)[:2]
    assert server.num_dials > 2
    # It may come back later.
    server.refuse = None
    assert await pair.generate(PROMPT, SAMPLED) == answer(PROMPT, SAMPLED)


async def test_a_refusal_that_time_does_not_heal_is_not_repeated(pair, server):
    server.cut_after = {2}
    server.forgetful = True
    server.refuse = wire.Error(code="fingerprint_mismatch", message="another model now")
    with pytest.raises(RequestFailed, match="another model now") as failed:
        await pair.generate(PROMPT, SAMPLED)
    assert failed.value.code == "fingerprint_mismatch"
    assert server.num_dials == 2


async def test_a_restarting_server_is_waited_for(pair, server):
    server.cut_after = {2}
    running = asyncio.ensure_future(pair.generate(PROMPT, SAMPLED))
    server.refuse = LinkRefused("starting", "draining", 503, retry_after_s=0.05)
    await asyncio.sleep(0.1)
    assert not running.done()
    server.refuse = None
    assert await running == answer(PROMPT, SAMPLED)


@pytest.mark.parametrize("code", ["engine_dead", "draining"])
async def test_a_server_that_goes_in_the_middle_is_replaced(pair, server, code):
    tokens = pair.session.generate(PROMPT, SAMPLED)
    got = [(await anext(tokens)).token.token_id]
    server.forgetful = True
    await server.say(wire.Error(code=code, message="going"))
    got += [step.token.token_id async for step in tokens]
    assert got == answer(PROMPT, SAMPLED)
    assert server.num_sessions == 2


async def test_after_bye_the_session_is_not_claimed(pair, server):
    tokens = pair.session.generate(PROMPT, SAMPLED)
    got = [(await anext(tokens)).token.token_id]
    server.forgetful = True
    await server.say(wire.Bye())
    await pair.settled()
    await server.drop_link()
    got += [step.token.token_id async for step in tokens]
    assert got == answer(PROMPT, SAMPLED)
    assert [hello.resume_token for hello in server.sent(wire.Hello)] == [None, None]


async def test_an_idle_session_does_not_call_the_server(pair, server):
    await server.drop_link()
    await pair.settled()
    assert server.num_dials == 1
    assert await pair.generate(PROMPT, SAMPLED) == answer(PROMPT, SAMPLED)
    assert server.num_dials == 2


async def test_random_cuts(pair, server):
    """Cuts at any message, not only around tokens."""
    stop = asyncio.Event()

    async def saboteur():
        for pause in (3, 17, 1, 29, 8, 2, 41, 11, 5, 23):
            for _ in range(pause):
                await asyncio.sleep(0)
            server.forgetful = pause % 2 == 0
            await server.drop_link()
        stop.set()

    cutting = asyncio.ensure_future(saboteur())
    sampling = SamplingParams(max_tokens=30)
    prompts = [list(range(i, i + 25)) for i in range(5)]
    results = await asyncio.gather(*(pair.generate(prompt, sampling) for prompt in prompts))
    assert results == [answer(prompt, sampling) for prompt in prompts]
    await cutting
    assert stop.is_set()


async def test_a_server_that_welcomes_and_hangs_up_is_not_called_without_end(pair, server):
    async def hang_up(link, requests, message):
        await link.close(CloseCode.ABNORMAL)

    server._open = hang_up
    with pytest.raises(RequestFailed, match="ends them before it answers") as caught:
        await pair.generate(PROMPT, SAMPLED)
    assert caught.value.code == "server_unreachable"
    # Pauses are drawn from bounds that double: thousands of calls fit the time without them.
    assert 2 <= server.num_dials < 40
    del server._open
    assert await pair.generate(PROMPT, SAMPLED) == answer(PROMPT, SAMPLED)
