"""Packets of a new request that do not wait for the answer to Open."""

import asyncio

import pytest
from split_peers import Pair, ScriptedServer, answer

from sliceserve.configs import SamplingParams
from sliceserve.transport import messages as wire
from sliceserve.transport.frames import DataFrame

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
TEN = SamplingParams(max_tokens=10)


@pytest.mark.parametrize("num_prompt", [1, 6, 11, 40])
@pytest.mark.parametrize("window", [1, 6, 100])
@pytest.mark.parametrize("early_tokens", [4, 512])
async def test_early_packets_come_again_where_there_was_no_room(num_prompt, window, early_tokens):
    server = ScriptedServer(window)
    server.early_tokens = early_tokens
    pair = Pair(server)
    await pair.session.start()
    prompt = list(range(num_prompt))
    assert await pair.generate(prompt, TEN) == answer(prompt, TEN)
    await pair.session.close()
    assert not server.violations


class LateServer(ScriptedServer):
    """Answers no Open before it has seen a packet."""

    opening = None

    async def _handle(self, link, token, message):
        if isinstance(message, wire.Open):
            self.opening = message
            return
        if isinstance(message, DataFrame) and self.opening is not None:
            opening, self.opening = self.opening, None
            await super()._handle(link, token, opening)
        await super()._handle(link, token, message)


async def test_packets_of_a_new_request_do_not_wait_for_the_answer_to_open():
    server = LateServer()
    server.early_tokens = 8
    pair = Pair(server, timeout_s=5.0)
    await pair.session.start()
    assert await pair.generate(PROMPT, TEN) == answer(PROMPT, TEN)
    await pair.session.close()
    assert not server.violations


async def test_a_refused_request_whose_packets_came_early_is_tried_again():
    server = ScriptedServer()
    server.early_tokens = 8
    server.refuse_open = wire.Error(code="overloaded", message="full", retry_after_s=0.05)
    pair = Pair(server)
    await pair.session.start()
    result = asyncio.create_task(pair.generate(PROMPT, TEN))
    while not server.sent(DataFrame):
        await asyncio.sleep(0.005)
    server.refuse_open = None
    assert await result == answer(PROMPT, TEN)
    await pair.session.close()
    assert not server.violations
