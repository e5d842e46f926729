"""Two API workers before one engine: any of them may hold any client's socket, and may die."""

import asyncio
import contextlib
import json
import os
from itertools import chain

import httpx
import msgspec
import psutil
import pytest
from correctness import (
    EXACT,
    GREEDY,
    RawLine,
    api,
    dialer,
    expect_nothing_left,
    hello_of,
    metrics,
    num_sessions,
    split_client,
    tokens_of,
)
from msgspec.structs import replace

from sliceserve.cli.local_server import local_server
from sliceserve.transport import messages as wire

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.model,
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="session"),
]

CUT = 8
NUM_TOKENS = 24
SAMPLED = replace(GREEDY, max_tokens=NUM_TOKENS, temperature=0.9, seed=7)
PROMPT = list(range(400, 420))


@pytest.fixture(scope="module")
def pair():
    """A server with two workers; at its end no process of it is left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLICESERVE_ENGINE__SCHEDULER__DETACHED_TIMEOUT_S", "10")
        with local_server([*EXACT, "--cuts", str(CUT), "--api-workers", "2"]) as running:
            family = process_of(running).children(recursive=True)
            assert len(family) == 3
            yield running
            family += process_of(running).children(recursive=True)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def process_of(server):
    """The child that has bound the server's port."""
    port = int(server.url.rpartition(":")[2])
    for process in psutil.Process().children():
        if any(c.laddr.port == port for c in process.net_connections("tcp") if c.laddr):
            return process
    raise AssertionError(f"no child listens at {server.url}")


def workers(server):
    """Worker processes by pid."""
    children = process_of(server).children()
    return {child.pid: child for child in children if "sliceserve.api.worker" in child.cmdline()}


async def held_by(server, connecting):
    """(pid, result): the worker that holds the connection that ``connecting`` has made."""

    def held():
        return {
            (pid, c.raddr.port)
            for pid, process in workers(server).items()
            for c in process.net_connections("tcp")
            if c.raddr
        }

    before = held()
    result = await connecting
    (pid,) = {pid for pid, _ in held() - before}
    return pid, result


async def spread(server, connect):
    """Results of ``connect`` by the worker that each is connected to, until both have one."""
    held = {}
    while held.keys() != workers(server).keys():
        pid, result = await held_by(server, connect())
        held.setdefault(pid, []).append(result)
    return held


async def thin_text(client, received=None):
    """The answer to a streamed request; ``received`` is set when it has begun."""
    body = {
        "model": (await client.get("/v1/models")).json()["data"][0]["id"],
        "prompt": PROMPT,
        "max_tokens": 8 * NUM_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    text = ""
    async with client.stream("POST", "/v1/completions", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                if received is not None:
                    received.set()
    return text


def counted(text):
    """What the workers count, out of /metrics."""
    return [line for line in text.splitlines() if "path=" in line or "split_" in line]


async def test_workers_do_without_torch_and_without_the_terminal(pair):
    for pid, process in workers(pair).items():
        # Ctrl-C reaches the server alone.
        assert os.getsid(pid) == pid
        assert not any("libtorch" in library.path for library in process.memory_maps())


async def test_a_client_that_returns_elsewhere_leaves_nothing_behind(pair, heads):
    """While the worker that it comes from thinks the old line alive."""
    hello = hello_of((await heads(CUT)).info)
    opening = wire.Open(request_id=1, num_prompt=4, sampling=SAMPLED)
    lines = await spread(pair, dialer(pair))
    first, second = (RawLine(links[0]) for links in lines.values())
    await first.send(hello)
    welcome = await first.receive(wire.Welcome)
    await first.send(opening)
    await first.receive(wire.Opened)
    await second.send(msgspec.structs.replace(hello, resume_token=welcome.resume_token))
    await second.receive(wire.Welcome)
    await second.send(opening)
    await second.receive(wire.Opened)
    assert await first.closed() == 1008
    await second.send(wire.Bye())
    for link in chain.from_iterable(lines.values()):
        await link.close()
    await expect_nothing_left(pair)


async def test_the_death_of_a_worker_ends_its_sockets_only(pair, heads):
    head = await heads(CUT)
    async with contextlib.AsyncExitStack() as stack:

        async def connect_split():
            return await stack.enter_async_context(split_client(head, dialer(pair)))

        async def connect_thin():
            client = await stack.enter_async_context(api(pair))
            await client.get("/version")
            return client

        async def begin_thin():
            # With a connection of its own: idle ones are closed after seconds, and the next may be
            # another worker's.
            client = await stack.enter_async_context(api(pair))
            began = asyncio.Event()
            stream = asyncio.create_task(thin_text(client, began))
            await began.wait()
            return stream

        splits = await spread(pair, connect_split)
        victim, other = splits
        sessions = list(chain.from_iterable(splits.values()))
        expected = await tokens_of(sessions[0], PROMPT, SAMPLED)
        expected_text = await thin_text(await stack.enter_async_context(api(pair)))

        running = [session.generate(PROMPT, SAMPLED) for session in sessions]
        texts = [[(await anext(steps)).token.token_id for _ in range(5)] for steps in running]
        streams = await spread(pair, begin_thin)
        workers(pair)[victim].kill()

        async def rest(steps):
            return [step.token.token_id async for step in steps]

        rests = await asyncio.gather(*map(rest, running))
        assert [text + rest for text, rest in zip(texts, rests, strict=True)] == [expected] * len(
            sessions
        )
        for doomed in streams[victim]:
            with pytest.raises(httpx.TransportError):
                await doomed
        assert set(await asyncio.gather(*streams[other])) == {expected_text}
        assert {session.stats.num_reconnects for session in splits[victim]} == {1}
        assert {session.stats.num_reconnects for session in splits[other]} == {0}
        await expect_nothing_left(pair)

        # Another takes its place, and both know what all three have counted.
        again = await spread(pair, connect_thin)
        assert victim not in again and other in again
        answers = [(await clients[0].get("/metrics")).text for clients in again.values()]
        assert counted(answers[0]) == counted(answers[1])
        now = await metrics(pair)
        assert await num_sessions(pair) == len(sessions)
        labels = 'path="split",tenant="default"'
        assert now[f"generation_tokens_total{{{labels}}}"] >= (len(sessions) + 1) * NUM_TOKENS
        labels = 'finished_reason="length",path="thin",tenant="default"'
        assert now[f"request_success_total{{{labels}}}"] == 1 + len(streams[other])
