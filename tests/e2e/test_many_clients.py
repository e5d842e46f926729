"""Twenty-four clients at once, split at three depths and not at all, each with the text that it
gets alone; and one pass of the SDK over the real socket."""

import asyncio
import contextlib
import json

import pytest
from correctness import (
    GREEDY,
    api,
    dialer,
    expect_nothing_left,
    metrics,
    num_sessions,
    split_client,
    tokens_of,
)
from msgspec.structs import replace

from sliceserve.client import AsyncSplitLLM
from sliceserve.configs import SamplingParams

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.model,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="session"),
]

NUM_TOKENS = 16
SHORT = replace(GREEDY, max_tokens=NUM_TOKENS)
CUTS = (8, 15, 22)
NUM_THIN = 6


def sampled(seed: int) -> SamplingParams:
    return replace(SHORT, temperature=0.8, top_k=50, seed=seed)


async def thin_text(http, case, sampling, stream=False):
    """The answer over OpenAI's API, to token ids and in text."""
    body = {
        "model": (await http.get("/v1/models")).json()["data"][0]["id"],
        "prompt": case.prompt,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "ignore_eos": True,
        "seed": sampling.seed,
        "stream": stream,
    }
    answer = (await http.post("/v1/completions", json=body)).raise_for_status()
    if not stream:
        return answer.json()["choices"][0]["text"]
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert events.pop() == "[DONE]"
    return "".join(json.loads(event)["choices"][0]["text"] for event in events)


async def test_the_sdk_says_what_transformers_says(server, cases):
    options = {"split": 15, "codec": "float32", "dtype": "float32", "device": "cpu"}
    async with AsyncSplitLLM(server.url, api_key=server.api_key, **options) as llm:
        answers = await asyncio.gather(*(llm.generate(c.prompt, GREEDY) for c in cases[::3]))
        assert [list(a.token_ids) for a in answers] == [c.tokens for c in cases[::3]]
        assert [a.num_prompt_tokens for a in answers] == [len(c.prompt) for c in cases[::3]]
    await expect_nothing_left(server)


async def test_everybody_gets_the_text_that_they_get_alone(server, cases, heads):
    num_split = 24 - NUM_THIN
    splits = [
        (CUTS[i % 3], cases[i % len(cases)], sampled(i) if i // 3 % 3 == 2 else SHORT)
        for i in range(num_split)
    ]
    thins = [(cases[-1 - i], sampled(100 + i) if i % 2 else SHORT) for i in range(NUM_THIN)]
    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(api(server))
        sessions = [
            await stack.enter_async_context(split_client(await heads(cut), dialer(server)))
            for cut, _, _ in splits
        ]
        # Greedy alone is what transformers says.
        alone = [
            await tokens_of(session, case.prompt, sampling)
            if sampling.temperature
            else case.tokens[:NUM_TOKENS]
            for session, (_, case, sampling) in zip(sessions, splits, strict=True)
        ]
        thin_alone = [await thin_text(http, case, sampling) for case, sampling in thins]
        assert await num_sessions(server) == num_split
        before = await metrics(server)
        together = await asyncio.gather(
            *(
                tokens_of(session, case.prompt, sampling)
                for session, (_, case, sampling) in zip(sessions, splits, strict=True)
            ),
            *(
                thin_text(http, case, sampling, stream=i % 3 == 0)
                for i, (case, sampling) in enumerate(thins)
            ),
        )
        assert together[:num_split] == alone
        assert together[num_split:] == thin_alone
        after = await metrics(server)
        # They did share passes: far fewer of them than tokens.
        num_steps = after["engine_steps_total"] - before["engine_steps_total"]
        assert num_steps < 24 * NUM_TOKENS / 3
        assert all(session.stats.num_reconnects == 0 for session in sessions)
    await expect_nothing_left(server)
    assert await num_sessions(server) == 0
