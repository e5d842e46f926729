"""A tiny Llama cut in two over a real socket, against the same model whole in transformers."""

import asyncio

import pytest
import torch
from split_server import split_server

from sliceserve.client import AsyncSplitLLM, ConnectionRefused, RequestFailed, SplitLLM
from sliceserve.configs import SamplingParams
from sliceserve.transport.proxy import ShapingProxy

PROMPT = list(range(3, 40))
SAMPLED = SamplingParams(max_tokens=12, temperature=1.0, seed=11, ignore_eos=True)


@pytest.fixture(autouse=True, scope="module")
def _two_threads():
    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("SLICESERVE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def greedy(tiny):
    """Tokens that transformers chooses after a prompt."""

    def generate(prompt, num_tokens):
        with torch.inference_mode():
            out = tiny[1].generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return tuple(out[0, len(prompt) :].tolist())

    return generate


def client(url, tiny, **options):
    settings = {"codec": "float32", "dtype": "float32", "device": "cpu", "timeout_s": 20.0}
    return AsyncSplitLLM(url, model=tiny[0], **(settings | options))


async def nothing_left(server):
    """The server hears of a cancel a moment later."""
    while await server.num_live():
        await asyncio.sleep(0.01)


async def test_a_split_model_says_what_the_whole_one_says(tiny, greedy):
    prompts = [PROMPT, [5], list(range(100, 200))]
    async with split_server(tiny[0], max_tokens_per_step=16, credit_window=32) as server:
        clients = [client(server.url, tiny, split=cut) for cut in (1, 3, 5)]
        await asyncio.gather(*(llm.start() for llm in clients))
        calls = [
            llm.generate(prompt, max_tokens=10, ignore_eos=True)
            for llm in clients
            for prompt in prompts
        ]
        completions = await asyncio.gather(*calls)
        assert [c.token_ids for c in completions] == [greedy(p, 10) for p in prompts] * 3
        assert [llm.split for llm in clients] == [1, 3, 5]
        await asyncio.gather(*(llm.close() for llm in clients))
        await nothing_left(server)


async def test_a_lost_line_changes_no_token(tiny):
    async with split_server(tiny[0]) as server, ShapingProxy("127.0.0.1", server.port) as proxy:
        async with client(server.url, tiny) as llm:
            expected = (await llm.generate(PROMPT, SAMPLED)).token_ids
        llm = client(f"http://127.0.0.1:{proxy.port}", tiny, split=3)
        tokens = []
        async for chunk in llm.stream(PROMPT, SAMPLED):
            tokens.append(chunk.token.token_id)
            if len(tokens) in (1, 6):
                await proxy.cut()
        assert tuple(tokens) == expected
        assert llm.stats.num_reconnects == 2
        assert (await server.engine.stats()).num_detached == 0
        await llm.close()
        await nothing_left(server)


async def test_another_server_goes_on_where_the_first_has_died(tiny, greedy):
    async with split_server(tiny[0]) as server:
        port = server.port
        llm = client(server.url, tiny, resume_timeout_s=60.0)
        stream = llm.stream(PROMPT, max_tokens=12, ignore_eos=True)
        tokens = [(await anext(stream)).token.token_id for _ in range(5)]
    async with split_server(tiny[0], port=port) as server:
        tokens += [chunk.token.token_id async for chunk in stream]
        assert tuple(tokens) == greedy(PROMPT, 12)
        await llm.close()
        await nothing_left(server)


async def turns(llm, num_turns=3):
    """A conversation of as many turns, and what it cost: each begins with all before it."""
    prompt, completions = list(PROMPT), []
    for turn in range(num_turns):
        completions.append(await llm.generate(prompt, SAMPLED))
        prompt += [*completions[-1].token_ids, *range(50 + turn, 60 + turn)]
    return completions


async def test_later_turns_send_what_is_new(tiny):
    without = split_server(tiny[0], prefix_cache=False)
    async with without as server, client(server.url, tiny) as llm:
        expected = [completion.token_ids for completion in await turns(llm)]
        assert llm.stats.total.num_cached_server == 0
    async with split_server(tiny[0]) as server, client(server.url, tiny) as llm:
        completions = await turns(llm)
        engine = await server.engine.stats()
    assert [completion.token_ids for completion in completions] == expected
    # Of 37 + 11 packets and of 59 + 11, in blocks of 16 here and of 8 there.
    stats = [completion.stats for completion in completions]
    assert [one.num_cached_head for one in stats] == [0, 48, 64]
    assert [one.num_cached_server for one in stats] == [0, 48, 64]
    assert [one.num_packets for one in stats] == [48, 59 + 11 - 48, 81 + 11 - 64]
    assert stats[1].bytes_up < 0.6 * stats[0].bytes_up
    assert engine.num_prefix_hit_tokens_total == 48 + 64


async def test_a_second_turn_at_a_server_that_knows_nothing_of_the_first(tiny):
    async with split_server(tiny[0]) as server:
        async with client(server.url, tiny) as llm:
            expected = [completion.token_ids for completion in await turns(llm, 2)]
        port = server.port
        llm = client(server.url, tiny, resume_timeout_s=60.0)
        first = await llm.generate(PROMPT, SAMPLED)
    async with split_server(tiny[0], port=port) as server:
        second = [*PROMPT, *first.token_ids, *range(50, 60)]
        completion = await llm.generate(second, SAMPLED)
        assert [first.token_ids, completion.token_ids] == expected
        # It is all sent, and not computed again.
        assert (completion.stats.num_cached_head, completion.stats.num_cached_server) == (48, 0)
        assert completion.stats.num_packets == len(second) + 11
        await llm.close()
        await nothing_left(server)


async def test_a_closed_stream_leaves_nothing_on_either_side(tiny):
    async with split_server(tiny[0]) as server, client(server.url, tiny) as llm:
        stream = llm.stream(PROMPT, max_tokens=200, ignore_eos=True)
        await anext(stream)
        assert await server.num_live() == 1
        await stream.aclose()
        await nothing_left(server)
        assert (await llm.head.stats()).num_live == 0


async def test_refusals_say_what_differs(tiny, tmp_path):
    async with split_server(tiny[0], api_keys=("right",)) as server:
        with pytest.raises(ConnectionRefused, match="API key") as refused:
            await client(server.url, tiny).start()
        assert refused.value.code == "unauthorized"
        with pytest.raises(ConnectionRefused, match="cuts offered are 1, 3, 5"):
            await client(server.url, tiny, api_key="right", split=2).start()
        other = tmp_path / "other"
        tiny[1].save_pretrained(other)
        (other / "config.json").write_text(
            (other / "config.json").read_text().replace("10000.0", "20000.0")
        )
        with pytest.raises(ConnectionRefused, match="same model") as refused:
            await client(server.url, (str(other),), api_key="right").start()
        assert refused.value.code == "fingerprint_mismatch"
        async with client(server.url, tiny, api_key="right") as llm:
            with pytest.raises(RequestFailed, match="at most 256"):
                await llm.generate(list(range(256)))
    with pytest.raises(ConnectionRefused, match="sliceserve serve"):
        await client(server.url, tiny).start()


async def test_without_an_event_loop(tiny, greedy):
    def use(url):
        with SplitLLM(url, model=tiny[0], codec="float32", dtype="float32") as llm:
            pieces = "".join(chunk.text for chunk in llm.stream(PROMPT, max_tokens=8))
            return pieces, llm.generate(PROMPT, max_tokens=8, ignore_eos=True)

    async with split_server(tiny[0]) as server:
        text, completion = await asyncio.to_thread(use, server.url)
        assert completion.token_ids == greedy(PROMPT, 8)
        assert completion.text.startswith(text)
        await nothing_left(server)


async def test_the_books_show_the_codec(tiny):
    async with split_server(tiny[0]) as server, client(server.url, tiny) as llm:
        stats = (await llm.generate(PROMPT, max_tokens=20, ignore_eos=True)).stats
        assert stats.num_packets == len(PROMPT) + 19
        # Four bytes an element, and little else.
        assert 4 * 72 < stats.uplink_bytes_per_token < 4 * 72 + 40
        assert 0.4 < llm.stats.uplink_reduction_vs_fp16 < 0.5
        assert stats.server_s > 0.0 and stats.head_s > 0.0
