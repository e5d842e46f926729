"""Later turns of a conversation: what head and server have kept is neither computed nor sent."""

import asyncio
import random

import pytest
from split_peers import Pair, ScriptedServer, answer

from sliceserve.client.errors import RequestFailed
from sliceserve.client.stats import RequestStats
from sliceserve.configs import SamplingParams
from sliceserve.engine.generation import Caller
from sliceserve.transport import messages as wire
from sliceserve.transport.frames import DataFrame

FIRST = list(range(20, 31))
TEN = SamplingParams(max_tokens=10)
# The last token's packet was never made: 20 positions have one, five blocks of 4.
SECOND = [*FIRST, *answer(FIRST, TEN), 900, 901, 902]
NUM_KEPT = 20
NUM_POSITIONS = len(SECOND) + 9


@pytest.fixture
def server():
    server = ScriptedServer()
    server.block_size = 4
    return server


async def turn(pair, prompt, stats=None):
    """The answer, and the positions whose packets were sent, in order."""
    seen = len(pair.server.received)
    steps = [step async for step in pair.session.generate(prompt, TEN, stats=stats)]
    frames = [m for m in pair.server.received[seen:] if isinstance(m, DataFrame)]
    sent = [p for f in frames for p in range(f.first_position, f.first_position + len(f.packets))]
    return [step.token.token_id for step in steps], sent


async def test_only_what_is_new_is_computed_and_sent(pair, server):
    await turn(pair, FIRST)
    pair.head.encoded.clear()
    stats = RequestStats()
    tokens, sent = await turn(pair, SECOND, stats)
    assert tokens == answer(SECOND, TEN)
    new = list(range(NUM_KEPT, NUM_POSITIONS))
    assert sent == [position for _, position in pair.head.encoded] == new
    first, second = server.sent(wire.Open)
    assert (len(first.prefix), len(second.prefix)) == (0, 5)
    assert (stats.num_cached_head, stats.num_cached_server) == (NUM_KEPT, NUM_KEPT)
    assert stats.num_packets == len(new)
    assert pair.session.stats.total.num_cached_server == NUM_KEPT
    steps = [step async for step in pair.session.generate(SECOND, TEN)]
    assert {step.num_cached for step in steps} == {len(SECOND)}


@pytest.mark.parametrize(("block_size", "num_held"), [(1, 20), (3, 18), (7, 14), (32, 0), (0, 0)])
async def test_blocks_are_the_servers(server, block_size, num_held):
    server.block_size = block_size
    pair = Pair(server)
    await pair.session.start()
    await turn(pair, FIRST)
    tokens, sent = await turn(pair, SECOND)
    assert tokens == answer(SECOND, TEN)
    assert sent == list(range(num_held, NUM_POSITIONS))
    assert len(server.sent(wire.Open)[1].prefix) == (num_held // block_size if block_size else 0)
    await pair.session.close()


@pytest.mark.parametrize("num_held", [0, 4, 12])
async def test_what_the_server_has_evicted_is_sent_and_not_computed(pair, server, num_held):
    await turn(pair, FIRST)
    pair.head.encoded.clear()
    for digest in list(server.kept)[num_held // 4 :]:
        del server.kept[digest]
    stats = RequestStats()
    tokens, sent = await turn(pair, SECOND, stats)
    assert tokens == answer(SECOND, TEN)
    assert sent == list(range(num_held, NUM_POSITIONS))
    assert [position for _, position in pair.head.encoded] == list(range(NUM_KEPT, NUM_POSITIONS))
    assert (stats.num_cached_head, stats.num_cached_server) == (NUM_KEPT, num_held)
    assert stats.num_packets == len(sent)


async def test_what_the_head_has_evicted_is_not_named(pair, server):
    await turn(pair, FIRST)
    pair.head.kept.clear()
    stats = RequestStats()
    tokens, sent = await turn(pair, SECOND, stats)
    assert tokens == answer(SECOND, TEN)
    assert sent == list(range(NUM_POSITIONS))
    assert (stats.num_cached_head, stats.num_cached_server) == (0, 0)


async def test_tenants_of_a_gateway_do_not_find_each_others(pair, server):
    await turn(pair, FIRST)
    other = pair.session.generate(SECOND, TEN, Caller(tenant="other"))
    assert [step.token.token_id async for step in other] == answer(SECOND, TEN)
    assert [len(opening.prefix) for opening in server.sent(wire.Open)] == [0, 0]


async def test_a_prompt_that_the_server_holds_whole_is_answered_at_once(pair, server):
    await turn(pair, FIRST)
    prompt = SECOND[:NUM_KEPT]
    tokens, sent = await turn(pair, prompt)
    assert tokens == answer(prompt, TEN)
    assert sent == list(range(NUM_KEPT, NUM_KEPT + 9))


@pytest.mark.parametrize("forgets_blocks", [False, True])
async def test_a_resume_where_the_request_is_unknown(pair, server, forgets_blocks):
    """A server that was started anew has nothing; one that lost the session may have blocks."""
    await turn(pair, FIRST)
    stats = RequestStats()
    tokens = []
    async for step in pair.session.generate(SECOND, TEN, stats=stats):
        tokens.append(step.token.token_id)
        if len(tokens) == 3:
            assert stats.num_cached_server == NUM_KEPT
            server.forgetful = True
            if forgets_blocks:
                server.kept.clear()
            await server.drop_link()
    assert tokens == answer(SECOND, TEN)
    again = server.sent(wire.Open)[-1]
    # All that is here by now, not the head's alone.
    assert len(again.prefix) == (len(SECOND) + len(again.outputs) - 1) // 4
    assert stats.num_cached_server == (0 if forgets_blocks else NUM_KEPT)
    assert stats.num_packets == NUM_POSITIONS - stats.num_cached_server


async def test_packets_that_are_wanted_after_all_are_sent(pair, server):
    await turn(pair, FIRST)
    stats = RequestStats()
    tokens = pair.session.generate(SECOND, TEN, stats=stats)
    got = [(await anext(tokens)).token.token_id]
    await server.say(wire.Want(request_id=2, next_position=5))
    await pair.settled()
    got += [step.token.token_id async for step in tokens]
    assert got == answer(SECOND, TEN)
    assert (stats.num_cached_server, stats.num_packets) == (5, NUM_POSITIONS - 5)


@pytest.mark.parametrize(
    "lie",
    [
        wire.Opened(request_id=2, next_position=NUM_KEPT + 1, credit=99),
        wire.Want(request_id=2, next_position=NUM_KEPT),
        wire.Token(request_id=2, position=len(SECOND), token_id=1),
    ],
)
async def test_a_server_cannot_have_what_was_neither_sent_nor_named(pair, server, lie):
    await turn(pair, FIRST)
    server.silent = True
    second = asyncio.ensure_future(turn(pair, SECOND))
    await pair.settled()
    await server.say(lie)
    with pytest.raises(RequestFailed) as failed:
        await second
    assert failed.value.code == "protocol_error"


async def test_the_server_is_told_when_the_head_has_opened(server):
    pair = Pair(server, timeout_s=0.05)
    await pair.session.start()
    pair.head.slow = True
    second = asyncio.ensure_future(turn(pair, SECOND))
    # Longer than the server may be silent: it owes nothing yet.
    await asyncio.sleep(0.2)
    assert not second.done()
    assert not server.sent(wire.Open)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    await pair.session.close()
    assert not server.sent(wire.Cancel)


@pytest.mark.parametrize("seed", range(8))
async def test_a_long_conversation_whatever_is_forgotten(pair, server, seed):
    noise = random.Random(seed)
    prompt = FIRST[:3]
    while len(prompt) + 16 < 100:
        sampling = SamplingParams(max_tokens=noise.randrange(1, 13))
        running = asyncio.ensure_future(pair.generate(prompt, sampling))
        for _ in range(noise.randrange(60)):
            await asyncio.sleep(0)
        server.forgetful = noise.random() < 0.5
        if noise.random() < 0.5:
            await server.drop_link()
        tokens = await running
        assert tokens == answer(prompt, sampling)
        server.kept = {d: p for d, p in server.kept.items() if noise.random() < 0.9}
        pair.head.kept = {name for name in pair.head.kept if noise.random() < 0.9}
        prompt = [*prompt, *tokens, noise.randrange(1000)]
    assert pair.session.stats.total.num_cached_server > 0
