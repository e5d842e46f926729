"""Penalties, biases and logprobs of prompts for split clients, over a real socket."""

import asyncio

import pytest
import torch
from msgspec.structs import replace
from split_peers import welcome
from split_server import split_server

from sliceserve.api import split
from sliceserve.client import AsyncSplitLLM, RequestFailed
from sliceserve.client.request import SplitRequest
from sliceserve.client.stats import RequestStats
from sliceserve.configs import SamplingParams
from sliceserve.configs.codec import CalibratedConfig, CodecConfig
from sliceserve.engine.generation import ThinGenerator
from sliceserve.scheduler.plan import PromptLogprob
from sliceserve.transport.messages import (
    PromptLogprobs,
    PromptToken,
    Token,
)
from sliceserve.transport.proxy import ShapingProxy

PROMPT = [5, 6, 7, 5, *range(100, 130)]
SAMPLING = SamplingParams(
    max_tokens=16,
    temperature=0.8,
    seed=3,
    logit_bias={9: 2.0},
    presence_penalty=0.5,
    frequency_penalty=0.5,
    repetition_penalty=1.2,
    min_tokens=12,
    prompt_logprobs=2,
)


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("SLICESERVE_CACHE", str(tmp_path / "cache"))


def client(url, tiny, **options):
    settings = {"codec": "float32", "dtype": "float32", "device": "cpu", "timeout_s": 20.0}
    return AsyncSplitLLM(url, model=tiny[0], **(settings | options))


async def test_a_split_client_gets_what_a_thin_one_gets(tiny):
    async with split_server(tiny[0], first=0, max_tokens_per_step=16) as server:
        thin = [step async for step in ThinGenerator(server.engine).generate(PROMPT, SAMPLING)]
        async with client(server.url, tiny, split=3) as llm:
            completion = await llm.generate(PROMPT, SAMPLING)
    assert completion.token_ids == tuple(step.token.token_id for step in thin)
    with torch.inference_mode():
        expected = tiny[1](torch.tensor([PROMPT])).logits[0].log_softmax(-1)
    first, *scores = completion.prompt_logprobs
    assert first is None
    assert [score.token_id for score in scores] == PROMPT[1:]
    for score, row in zip(scores, expected, strict=False):
        assert score.logprob == pytest.approx(row[score.token_id].item(), abs=1e-3)
        assert [top.token_id for top in score.top] == row.topk(2).indices.tolist()
    assert [s.rank for s in scores] == [s.rank for s in thin[0].prompt_logprobs]


async def test_lost_lines_change_nothing(tiny):
    async with split_server(tiny[0]) as server, ShapingProxy("127.0.0.1", server.port) as proxy:
        async with client(server.url, tiny) as llm:
            expected = await llm.generate(PROMPT, SAMPLING)
        async with client(f"http://127.0.0.1:{proxy.port}", tiny) as llm:
            tokens, scores = [], []
            async for chunk in llm.stream(PROMPT, SAMPLING):
                tokens.append(chunk.token.token_id)
                scores += chunk.prompt_logprobs
                if len(tokens) in (1, 7):
                    await proxy.cut()
            assert llm.stats.num_reconnects == 2
    assert tuple(tokens) == expected.token_ids
    assert (None, *scores) == expected.prompt_logprobs


async def test_a_client_that_hides_tokens_sends_no_prompt(tiny):
    codec = CodecConfig(name="float32", calibrated=CalibratedConfig(hide_tokens=True))
    async with split_server(tiny[0]) as server, client(server.url, tiny, codec=codec) as llm:
        for needs_prompt in ({"repetition_penalty": 1.1}, {"prompt_logprobs": 0}):
            with pytest.raises(RequestFailed, match="hide_tokens"):
                await llm.generate(PROMPT, **needs_prompt)
        # What was sampled the server knows anyway.
        completion = await llm.generate(PROMPT, presence_penalty=1.0, max_tokens=4)
        assert completion.num_tokens == 4


async def test_an_older_server_is_spoken_to_in_its_version(tiny, monkeypatch):
    monkeypatch.setattr(split, "PROTOCOL_VERSION", 2)
    async with split_server(tiny[0]) as server, client(server.url, tiny) as llm:
        assert (await llm.generate(PROMPT, max_tokens=3)).num_tokens == 3
        assert llm.generator.welcome.protocol == 2
        with pytest.raises(RequestFailed, match=r"presence_penalty, prompt_logprobs: .* version 2"):
            await llm.generate(PROMPT, presence_penalty=1.0, prompt_logprobs=1)
        while await server.num_live():
            await asyncio.sleep(0.01)


def scored(start, stop):
    tokens = [PromptToken(PROMPT[i], -0.5, 3) for i in range(start, stop)]
    return PromptLogprobs(request_id=1, position=start, tokens=tokens)


@pytest.fixture
def request_of():
    """A request whose packets the server has had, waiting for its first token."""

    def make(sampling):
        request = SplitRequest(1, PROMPT, sampling, RequestStats(), 0.0)
        request.begin([b""] * len(PROMPT))
        opening = request.next_message(welcome(block_size=1), 0.0)
        assert opening.prompt_ids == (PROMPT if sampling.needs_prompt else [])
        request.open(len(PROMPT), 64, 0.0)
        return request

    return make


def test_logprobs_that_come_twice_are_kept_once(request_of):
    request = request_of(SAMPLING)
    for part in (scored(1, 20), scored(1, 10), scored(15, 25), scored(25, len(PROMPT))):
        request.take_prompt_logprobs(part, 0.0)
    request.take_token(Token(request_id=1, position=len(PROMPT), token_id=4), 0.0)
    assert request.steps.get_nowait().prompt_logprobs == [
        PromptLogprob(token_id, -0.5, 3) for token_id in PROMPT[1:]
    ]


@pytest.mark.parametrize("wrong", [scored(0, 3), scored(3, 5), scored(1, len(PROMPT))])
def test_logprobs_that_cannot_be_end_the_request(request_of, wrong):
    request = request_of(SAMPLING)
    if wrong.position == 1:
        # A token more than the prompt has.
        wrong.tokens.append(wrong.tokens[0])
    with pytest.raises(RequestFailed, match="logprobs of prompt positions"):
        request.take_prompt_logprobs(wrong, 0.0)


def test_a_token_before_the_logprobs_ends_the_request(request_of):
    token = Token(request_id=1, position=len(PROMPT), token_id=4)
    request = request_of(SAMPLING)
    request.take_prompt_logprobs(scored(1, 5), 0.0)
    with pytest.raises(RequestFailed, match="before the logprobs of prompt position 5"):
        request.take_token(token, 0.0)
    request_of(replace(SAMPLING, prompt_logprobs=None)).take_token(token, 0.0)
