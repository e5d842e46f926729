"""A tiny Llama cut in two, with the calibrated codec between: the server hands its profile over."""

import asyncio
import random
from pathlib import Path

import pytest
from split_server import split_server

from sliceserve.calibration import calibrate, keep
from sliceserve.client import AsyncSplitLLM, ConnectionRefused, SplitError, build
from sliceserve.configs import CalibratedConfig, CodecConfig, SamplingParams
from sliceserve.engine.profiles import profile_store
from sliceserve.transport.proxy import ShapingProxy

CUT = 3
PROMPTS = [list(range(3, 40)), [5], list(range(100, 200))]
SAMPLED = SamplingParams(max_tokens=12, temperature=1.0, seed=11, ignore_eos=True)


@pytest.fixture(scope="module")
def profiles(tiny):
    """Of the tiny model at one cut, by predictor."""
    noise = random.Random(3)
    text = " ".join(f"w{noise.randrange(3, 300)}" for _ in range(2048))
    made = calibrate(Path(tiny[0]), [CUT], ("state", "none"), text)
    return {predictor: profile for (_, predictor), profile in made.items()}


@pytest.fixture
async def server(tiny, profiles, tmp_path, monkeypatch):
    """Holds the profiles in a store of its own; that of the clients is empty."""
    monkeypatch.setenv("SLICESERVE_CACHE", str(tmp_path / "server"))
    for profile in profiles.values():
        keep(profile, profile_store())
    sizes = {"max_tokens_per_step": 16, "credit_window": 32}
    async with split_server(
        tiny[0], CUT, profiles="auto", cuts=(CUT,), api_keys=("sesame",), **sizes
    ) as server:
        monkeypatch.setenv("SLICESERVE_CACHE", str(tmp_path / "client"))
        yield server


def client(url, tiny, **config):
    codec = CodecConfig(name="calibrated", calibrated=CalibratedConfig(**config))
    return AsyncSplitLLM(
        url, model=tiny[0], codec=codec, dtype="float32", device="cpu", api_key="sesame"
    )


async def tokens_of(llm, prompts=PROMPTS):
    completions = await asyncio.gather(*(llm.generate(prompt, SAMPLED) for prompt in prompts))
    return [completion.token_ids for completion in completions]


async def test_a_client_without_the_profile_is_given_it(server, tiny, profiles, monkeypatch):
    state = profiles["state"].digest
    assert profile_store().get(state) is None
    async with client(server.url, tiny) as llm:
        assert llm.codec == "calibrated/1"
        assert llm.generator.welcome.profile == state
        expected = await tokens_of(llm)
        # Four bytes an element it would be without a codec; these elements are noise.
        assert llm.stats.uplink_bytes_per_token < 72
    assert profile_store().get(state) == profiles["state"].to_bytes()

    async def fail(*_, **__):
        raise SplitError("nobody was to ask")

    monkeypatch.setattr(build, "fetch_profile", fail)
    async with client(server.url, tiny) as llm:
        assert await tokens_of(llm) == expected
        # A request alone is given the same bytes, and so the same text.
        assert await tokens_of(llm, PROMPTS[:1]) == expected[:1]
        with pytest.raises(SplitError, match="nobody was to ask"):
            await client(server.url, tiny, hide_tokens=True).start()


async def test_lost_lines_and_lost_memory_change_no_token(server, tiny):
    async with client(server.url, tiny) as llm:
        expected = await tokens_of(llm, PROMPTS[:1])
    async with ShapingProxy("127.0.0.1", server.port) as proxy:
        llm = client(f"http://127.0.0.1:{proxy.port}", tiny)
        tokens = []
        async for chunk in llm.stream(PROMPTS[0], SAMPLED):
            tokens.append(chunk.token.token_id)
            if len(tokens) == 3:
                await proxy.cut()
            elif len(tokens) == 7:
                # The server is to know nothing of the request, and has it sent again.
                llm.generator._line._dialer.forget_session()
                await proxy.cut()
        assert [tuple(tokens)] == expected
        assert llm.stats.num_reconnects == 2
        await llm.close()


@pytest.mark.parametrize("hide_tokens", [False, True])
async def test_prediction_goes_on_behind_what_is_not_sent(server, tiny, hide_tokens):
    """The packet behind a prefix is predicted from its last state, which both sides have kept."""
    prompt = PROMPTS[0]
    async with client(server.url, tiny, hide_tokens=hide_tokens) as llm:
        for turn in range(3):
            completion = await llm.generate(prompt, SAMPLED)
            async with client(server.url, tiny, hide_tokens=hide_tokens) as fresh:
                # Its head has nothing, so it sends all.
                expected = await fresh.generate(prompt, SAMPLED)
            assert completion.token_ids == expected.token_ids
            assert (expected.stats.num_cached_head, expected.stats.num_cached_server) == (0, 0)
            num_kept = (0, 48, 64)[turn]
            assert completion.stats.num_cached_head == num_kept
            assert completion.stats.num_cached_server == num_kept
            assert completion.stats.num_packets == expected.stats.num_packets - num_kept
            prompt = [*prompt, *completion.token_ids, *range(50 + turn, 60 + turn)]


async def test_hidden_tokens_take_the_profile_without_them(server, tiny, profiles):
    async with client(server.url, tiny, hide_tokens=True) as llm:
        assert llm.generator.welcome.profile == profiles["none"].digest
        assert all(len(tokens) == 12 for tokens in await tokens_of(llm))


async def test_a_server_without_profiles_does_not_offer_the_codec(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("SLICESERVE_CACHE", str(tmp_path))
    async with split_server(tiny[0]) as server:
        with pytest.raises(ConnectionRefused, match="'calibrated/1' is not known here"):
            await client(server.url, tiny).start()


async def test_a_profile_that_shows_tokens_hides_none(server, tiny, profiles, monkeypatch):
    """Whatever the server says, a client that hides token ids sends none."""
    honest = build.Hello
    monkeypatch.setattr(build, "Hello", lambda **fields: honest(**fields | {"hide_tokens": False}))
    with pytest.raises(SplitError, match="hide_tokens is set"):
        await client(server.url, tiny, hide_tokens=True).start()
