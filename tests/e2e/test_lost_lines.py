"""Lines that are cut at the worst moments, servers that forget and servers that die: no token
changes."""

import asyncio
import contextlib
import random

import psutil
import pytest
from correctness import (
    EXACT,
    GREEDY,
    PACKET_BYTES,
    BorrowedHead,
    dialer,
    expect_nothing_left,
    hello_of,
    metrics,
    raw_line,
    split_client,
    tokens_of,
)
from msgspec.structs import replace

from sliceserve.cli.local_server import local_server
from sliceserve.engine.messages import AppendTokens, Cancel, Open
from sliceserve.transport import messages as wire
from sliceserve.transport.frames import DataFrame
from sliceserve.transport.proxy import ShapingProxy
from sliceserve.transport.shaping import LinkShape

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.model,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="session"),
]

NUM_TOKENS = 24
SHORT = replace(GREEDY, max_tokens=NUM_TOKENS)
SAMPLED = replace(SHORT, temperature=0.9, top_p=0.95, seed=2024)
# The case with the longest prompt: half a megabyte of packets.
LONG = 17


@pytest.fixture(scope="module")
def forgetful():
    """A server that forgets the requests of a lost connection at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLICESERVE_ENGINE__SCHEDULER__DETACHED_TIMEOUT_S", "0")
        with local_server([*EXACT, "--cuts", "8,15"]) as running:
            yield running


@pytest.fixture(params=["keeps", "forgets"])
def either(request, server, forgetful):
    """(server, whether it keeps the requests of a lost connection)"""
    return {"keeps": (server, True), "forgets": (forgetful, False)}[request.param]


@contextlib.asynccontextmanager
async def shaky_client(either, head, **shape):
    """(session, proxy): a client whose line can be cut."""
    server, keeps = either
    port = int(server.url.rpartition(":")[2])
    async with ShapingProxy("127.0.0.1", port, LinkShape(**shape)) as proxy:

        async def dial():
            # Back before the server has noticed the loss, it would find its requests even there.
            while not keeps and (await metrics(server)).get("num_requests_live", 1):
                await asyncio.sleep(0.01)
            return await dialer(server, proxy.port)()

        async with split_client(head, dial) as session:
            yield session, proxy
    await expect_nothing_left(server)


async def bytes_pass(proxy, num_bytes, receiving=None):
    """Until so many more have gone up, or ``receiving`` has all that it wants."""
    goal = proxy.bytes_up + num_bytes
    while proxy.bytes_up < goal and not (receiving and receiving.done()):
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("sampling", [SHORT, SAMPLED], ids=["greedy", "sampled"])
async def test_cuts_between_tokens(either, heads, cases, sampling):
    server, keeps = either
    case = cases[0]
    head = await heads(8)
    expected = case.tokens[:NUM_TOKENS]
    if sampling is SAMPLED:
        async with split_client(head, dialer(server)) as session:
            expected = await tokens_of(session, case.prompt, sampling)
    async with shaky_client(either, head) as (session, proxy):
        got = []
        async for step in session.generate(case.prompt, sampling):
            got.append(step.token.token_id)
            if len(got) in (1, 2, 9, 23):
                await proxy.cut()
        assert got == expected
        assert session.stats.num_reconnects == 4
        total = session.stats.total
        # Sent again: next to nothing, or the prompt and all since, every time.
        num_sent = total.bytes_up / PACKET_BYTES
        if keeps:
            assert num_sent < 1.5 * total.num_packets
        else:
            assert num_sent > 3 * total.num_packets


async def test_cuts_within_the_prompt(either, heads, cases):
    case = cases[LONG]
    async with shaky_client(either, await heads(15), up_mbps=8.0) as (session, proxy):
        generating = asyncio.create_task(tokens_of(session, case.prompt, SHORT))
        prompt_bytes = len(case.prompt) * PACKET_BYTES
        # In the middle of a frame; at its end, while the server computes; and just before that.
        for share in (0.3, 1.0, 0.9):
            await bytes_pass(proxy, share * prompt_bytes, generating)
            await proxy.cut()
        assert await generating == case.tokens[:NUM_TOKENS]
        assert session.stats.num_reconnects >= 2


async def test_cuts_while_a_token_is_on_its_way(either, heads, cases):
    server, _ = either
    case = cases[1]

    async with shaky_client(either, await heads(8)) as (session, proxy):
        got = []
        async for step in session.generate(case.prompt, replace(GREEDY, max_tokens=8)):
            got.append(step.token.token_id)
            if len(got) not in (2, 3, 6):
                continue
            # The packet goes up and the line falls silent; the server answers into the silence.
            await bytes_pass(proxy, PACKET_BYTES)
            proxy.stall()
            while (await metrics(server)).get("num_requests_running", 1):
                await asyncio.sleep(0.01)
            await proxy.cut()
            proxy.resume()
        assert got == case.tokens[:8]
        assert session.stats.num_reconnects == 3


async def test_random_cuts_under_several_requests(either, heads, cases):
    moments = random.Random(7)
    async with shaky_client(either, await heads(15)) as (session, proxy):

        async def saboteur():
            # Replays take time: without an end to the cuts there need be none to the requests.
            for _ in range(8):
                await asyncio.sleep(moments.uniform(0.1, 1.0))
                await proxy.cut()

        cutting = asyncio.create_task(saboteur())
        got = await asyncio.gather(*(tokens_of(session, c.prompt, SHORT) for c in cases[:5]))
        cutting.cancel()
        assert got == [case.tokens[:NUM_TOKENS] for case in cases[:5]]
        assert session.stats.num_reconnects > 0


async def test_a_server_that_is_killed_is_replaced(server, heads, cases):
    """The first has the upper layers only, the second all of them."""
    case = cases[2]
    head = await heads(15)
    servers = [server]

    async def dial():
        return await dialer(servers[-1])()

    async with contextlib.AsyncExitStack() as stack:
        with local_server([*EXACT, "--first-layer", "15"]) as doomed:
            servers.append(doomed)
            session = await stack.enter_async_context(split_client(head, dial))
            expected = await tokens_of(session, case.prompt, SAMPLED)
            greedy = session.generate(case.prompt, SHORT)
            sampled = session.generate(case.prompt, SAMPLED)
            got = [(await anext(greedy)).token.token_id for _ in range(7)]
            got_sampled = [(await anext(sampled)).token.token_id for _ in range(3)]
            process_at(doomed.url).kill()
            servers.pop()
            got += [step.token.token_id async for step in greedy]
            got_sampled += [step.token.token_id async for step in sampled]
        assert got == case.tokens[:NUM_TOKENS]
        assert got_sampled == expected
        assert session.stats.num_reconnects == 1
    await expect_nothing_left(server)


def process_at(url):
    """The child process that listens there."""
    port = int(url.rpartition(":")[2])
    for process in psutil.Process().children():
        if any(c.laddr.port == port and c.status == "LISTEN" for c in process.net_connections()):
            return process
    raise AssertionError(f"no child listens at {url}")


async def test_frames_sent_twice_change_nothing(server, heads, cases):
    case = cases[3]
    num_prompt = len(case.prompt)
    head = BorrowedHead(await heads(8))
    stream = head.open(Open(request_id="a", num_prompt=num_prompt, prompt=case.prompt))
    packets, got = [], []
    async with raw_line(server, hello_of(head.info)) as line:
        await line.send(wire.Open(request_id=7, num_prompt=num_prompt, sampling=SHORT))
        assert (await line.receive(wire.Opened)).next_position == 0
        while len(got) < NUM_TOKENS:
            # A gap is answered, and taken for nothing else.
            await line.send(DataFrame(7, len(packets) + 1, [bytes(PACKET_BYTES)]))
            assert (await line.receive(wire.Want)).next_position == len(packets)
            start = len(packets)
            while len(packets) < num_prompt + len(got):
                packets += (await anext(stream)).packets
            # All that came before with the new, which comes alone as well.
            await line.send(DataFrame(7, 0, packets))
            if len(got) < NUM_TOKENS - 1:
                await line.send(DataFrame(7, start, packets[start:]))
            token = await line.receive(wire.Token)
            assert token.position == num_prompt + len(got)
            head.send(AppendTokens("a", token.position, [token.token_id]))
            got.append(token.token_id)
        assert token.finish_reason == "length"
    head.send(Cancel("a"))
    assert got == case.tokens[:NUM_TOKENS]
    await expect_nothing_left(server)
