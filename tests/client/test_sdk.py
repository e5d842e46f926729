"""AsyncSplitLLM and SplitLLM over a scripted head and server: words in, words out."""

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from split_peers import CODEC, CUT, answer

import sliceserve
from sliceserve.client import AsyncSplitLLM, RequestFailed, RequestTimeout, SplitError, SplitLLM
from sliceserve.client.options import CallOptions, SamplingOptions
from sliceserve.configs import ClientConfig, CodecConfig, ModelConfig, SamplingParams
from sliceserve.configs.loading import ConfigError
from sliceserve.models.errors import ModelError
from sliceserve.models.tokenizer import Tokenizer
from sliceserve.transport import messages as wire
from sliceserve.transport.link import LinkRefused

FIVE = SamplingParams(max_tokens=5)
PROMPT = [7, 8, 9]


def words(ids):
    return " ".join(f"w{i}" for i in ids)


@pytest.fixture
async def llm(scripted):
    async with AsyncSplitLLM() as llm:
        yield llm


@pytest.fixture
def sync_llm(scripted):
    with SplitLLM() as llm:
        yield llm


def eventually(holds):
    """What another thread does is awaited, not timed."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def test_a_text_is_completed(llm):
    completion = await llm.generate(words(PROMPT), FIVE)
    assert completion.text == words(completion.token_ids)
    assert completion.token_ids == tuple(answer(PROMPT, FIVE))
    assert completion.finish_reason == "length"
    assert (completion.num_prompt_tokens, completion.num_tokens) == (3, 5)
    assert completion.stats.num_tokens == 5
    assert completion.logprobs is None


async def test_token_ids_are_completed(llm):
    assert (await llm.generate(PROMPT, FIVE)).token_ids == tuple(answer(PROMPT, FIVE))


async def test_a_list_is_completed_in_order_and_within_the_servers_limit(llm, server):
    prompts = [[i, i + 1] for i in range(20)]
    most = 0

    async def count():
        nonlocal most
        while True:
            most = max(most, len(server.live))
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    completions = await llm.generate([words(prompt) for prompt in prompts], max_tokens=5)
    counting.cancel()
    assert [c.token_ids for c in completions] == [tuple(answer(p, FIVE)) for p in prompts]
    assert 1 < most <= 8
    assert await llm.generate([]) == []


async def test_one_failure_of_a_list_ends_the_others(llm, server, scripted):
    with pytest.raises(RequestFailed, match="at most 100"):
        await llm.generate([words(PROMPT), words(range(120)), words([1])], max_tokens=50)
    await scripted[0].settled()
    assert not server.live


async def test_params_go_over_sampling(llm, server):
    await llm.generate(PROMPT, SamplingParams(max_tokens=2, seed=4, temperature=1.0), seed=5)
    (opened,) = server.sent(wire.Open)
    assert (opened.sampling.seed, opened.sampling.max_tokens) == (5, 2)
    with pytest.raises(TypeError, match="max_token"):
        await llm.generate(PROMPT, max_token=5)
    with pytest.raises(ValueError, match="temperature"):
        await llm.generate(PROMPT, temperature=-1.0)


async def test_a_call_may_be_urgent(llm, server):
    await llm.generate(PROMPT, FIVE, priority=-2)
    await llm.generate(["w1", "w2"], FIVE, priority=3)
    await llm.chat("w1", FIVE, priority=4)
    _ = [chunk async for chunk in llm.stream("w1", FIVE, priority=5)]
    assert [opened.priority for opened in server.sent(wire.Open)] == [-2, 3, 3, 4, 5]


async def test_a_call_has_its_time(llm, server, scripted):
    assert len((await llm.generate(PROMPT, FIVE, timeout_s=20.0)).token_ids) == 5
    server.silent = True
    for call in (
        llm.generate(PROMPT, timeout_s=0.02),
        llm.generate([words([i]) for i in range(20)], timeout_s=0.02),
        llm.chat("w1", timeout_s=0.02),
        anext(llm.stream("w1", timeout_s=0.02)),
    ):
        with pytest.raises(RequestTimeout, match="with 0 tokens"):
            await call
    await scripted[0].settled()
    assert not server.live and not scripted[0].head.live


async def test_logprobs_are_handed_over(llm):
    completion = await llm.generate(PROMPT, FIVE, logprobs=0)
    assert [token.token_id for token in completion.logprobs] == answer(PROMPT, FIVE)


async def test_a_stop_string_ends_the_request_on_both_sides(llm, server, scripted):
    ids = answer(PROMPT, FIVE)
    completion = await llm.generate(PROMPT, max_tokens=50, stop=f"w{ids[2]}")
    assert completion.text.split() == words(ids[:2]).split()
    assert completion.finish_reason == "stop"
    await scripted[0].settled()
    assert not server.live and not scripted[0].head.live


async def test_a_text_and_a_conversation_are_chatted_alike(llm):
    expected = answer([*PROMPT, 1], FIVE)
    assert (await llm.chat(words(PROMPT), FIVE)).token_ids == tuple(expected)
    messages = [{"role": "user", "content": words(PROMPT)}]
    assert (await llm.chat(messages, FIVE)).token_ids == tuple(expected)
    chunks = [chunk async for chunk in llm.stream(messages, FIVE)]
    assert "".join(chunk.text for chunk in chunks) == words(expected)


async def test_a_stream_has_a_chunk_for_each_token(llm):
    chunks = [chunk async for chunk in llm.stream(words(PROMPT), FIVE)]
    assert [chunk.token.token_id for chunk in chunks] == answer(PROMPT, FIVE)
    assert [chunk.finish_reason for chunk in chunks] == [None] * 4 + ["length"]


async def test_a_stream_that_is_left_ends_the_request(llm, server, scripted):
    stream = llm.stream(PROMPT, max_tokens=50)
    await anext(stream)
    await stream.aclose()
    await scripted[0].settled()
    assert not server.live and not scripted[0].head.live


async def test_the_first_call_starts_it_and_concurrent_ones_start_it_once(scripted, server):
    llm = AsyncSplitLLM()
    assert "not started" in repr(llm)
    with pytest.raises(SplitError, match="not been started"):
        _ = llm.num_layers
    results = await asyncio.gather(llm.generate(PROMPT, FIVE), llm.chat("w5", FIVE))
    assert results[0].token_ids == tuple(answer(PROMPT, FIVE))
    assert len(scripted) == server.num_dials == 1
    await llm.close()
    await llm.close()
    assert llm.state == "closed" and repr(llm).endswith(", closed)")
    with pytest.raises(SplitError, match="closed"):
        await llm.generate(PROMPT)


async def test_a_failed_start_may_be_tried_again(scripted, server):
    llm = AsyncSplitLLM()
    server.refuse = LinkRefused("nobody there", "unreachable")
    with pytest.raises(SplitError, match="nobody there"):
        await llm.generate(PROMPT, FIVE)
    server.refuse = None
    assert (await llm.generate(PROMPT, FIVE)).token_ids == tuple(answer(PROMPT, FIVE))
    await llm.close()


async def test_a_model_without_a_tokenizer_leaves_no_connection(scripted, server, monkeypatch):
    def fail(*args):
        raise ModelError("no tokenizer.json")

    monkeypatch.setattr(Tokenizer, "load", fail)
    with pytest.raises(ModelError, match="tokenizer"):
        await AsyncSplitLLM().start()
    await scripted[0].settled()
    assert len(server.sent(wire.Bye)) == 1


async def test_what_it_is(llm):
    assert (llm.num_layers, llm.split, llm.codec) == (10, CUT, CODEC)
    assert repr(llm) == (
        "AsyncSplitLLM('http://127.0.0.1:8000', model='smollm2-135m-instruct', split=3 of 10, "
        "codec='scripted/1', connected)"
    )
    completion = await llm.generate(PROMPT, FIVE)
    assert repr(completion).startswith("Completion('w") and "3 + 5 tokens" in repr(completion)
    assert llm.stats.total.num_tokens == 5
    assert llm.generator.max_model_len == 100


def test_arguments_go_over_the_configuration():
    config = ClientConfig(
        server="http://a", split=4, model=ModelConfig(dtype="float32"), timeout_s=3.0
    )
    llm = AsyncSplitLLM("http://b", codec="int8", device="cpu", config=config)
    assert llm._config == ClientConfig(
        server="http://b",
        split=4,
        model=ModelConfig(dtype="float32", device="cpu"),
        codec=CodecConfig(name="int8"),
        timeout_s=3.0,
    )


def test_settings_come_from_a_file_or_a_mapping_and_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SLICESERVE_SPLIT", "9")
    path = tmp_path / "edge.yaml"
    path.write_text("server: http://a\nsplit: 4\ncodec: {name: int8}\n")
    expected = ClientConfig(
        server="http://a", split=9, codec=CodecConfig(name="int8"), max_retries=5
    )
    mapping = {"server": "http://a", "split": 4, "codec": {"name": "int8"}}
    for settings in (str(path), path, mapping):
        assert AsyncSplitLLM.from_config(settings, max_retries=5)._config == expected
    assert AsyncSplitLLM.from_config(settings, server="http://b")._config.server == "http://b"
    assert AsyncSplitLLM.from_config()._config.split == 9
    # Somebody has made it what it is.
    assert AsyncSplitLLM.from_config(ClientConfig(split=4))._config.split == 4
    with pytest.raises(ConfigError, match=r"settings: .*did you mean split"):
        AsyncSplitLLM.from_config({"splt": 4})


def test_the_sync_client_is_made_from_settings_too(scripted):
    with SplitLLM.from_config({"server": "http://a"}, codec="int8") as llm:
        assert repr(llm).startswith("SplitLLM('http://a', ")
        assert llm.generate(PROMPT, FIVE, timeout_s=20.0).num_tokens == 5


def test_options_that_do_not_exist_are_refused():
    with pytest.raises(TypeError, match="splt"):
        AsyncSplitLLM(splt=4)
    with pytest.raises(ValueError, match="max_retries"):
        AsyncSplitLLM(max_retries=-1)


def test_callers_may_give_every_field_of_sampling_by_name():
    fields = set(SamplingParams.__struct_fields__)
    assert SamplingOptions.__annotations__.keys() == fields
    assert CallOptions.__annotations__.keys() == fields | {"stop", "priority", "timeout_s"}


def test_sync_calls_wait_for_their_results(sync_llm):
    expected = tuple(answer(PROMPT, FIVE))
    assert sync_llm.generate(words(PROMPT), FIVE).token_ids == expected
    assert sync_llm.generate(PROMPT, max_tokens=5).token_ids == expected
    first, second = sync_llm.generate([words(PROMPT), "w1"], FIVE)
    assert first.token_ids == expected and second.num_prompt_tokens == 1
    assert sync_llm.chat("w7 w8 w9", FIVE).num_prompt_tokens == 4
    assert "".join(chunk.text for chunk in sync_llm.stream(PROMPT, FIVE)) == words(expected)
    assert (sync_llm.num_layers, sync_llm.split, sync_llm.codec) == (10, CUT, CODEC)
    assert sync_llm.stats.total.num_requests == 6
    assert repr(sync_llm).startswith("SplitLLM('http://") and sync_llm.state == "connected"


def test_sync_calls_from_many_threads_share_the_connection(sync_llm, server):
    prompts = [[i, i + 1, i + 2] for i in range(24)]
    with ThreadPoolExecutor(6) as pool:
        completions = list(pool.map(lambda p: sync_llm.generate(p, FIVE), prompts))
    assert [c.token_ids for c in completions] == [tuple(answer(p, FIVE)) for p in prompts]
    assert server.num_dials == 1


def test_a_sync_stream_that_is_left_ends_the_request(sync_llm, server, scripted):
    for _ in sync_llm.stream(PROMPT, max_tokens=50):
        break
    eventually(lambda: not server.live and not scripted[0].head.live)


def test_sync_errors_are_raised_where_the_call_was_made(sync_llm):
    with pytest.raises(RequestFailed, match="at most 100"):
        sync_llm.generate(list(range(200)))
    with pytest.raises(TypeError, match="max_token"):
        sync_llm.generate(PROMPT, max_token=5)


def test_a_sync_start_that_fails_leaves_no_thread(scripted, server):
    server.refuse = LinkRefused("nobody there", "unreachable")
    with pytest.raises(SplitError, match="nobody there"):
        SplitLLM()
    assert not [t for t in threading.enumerate() if t.name == "sliceserve-client"]


def test_close_ends_a_call_in_another_thread(scripted, server):
    llm = SplitLLM()
    server.silent = True
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(llm.generate, PROMPT)
        eventually(lambda: server.sent(wire.Open))
        llm.close()
        llm.close()
        with pytest.raises(SplitError, match="closed"):
            call.result(20)
    with pytest.raises(SplitError, match="closed"):
        llm.generate(PROMPT)
    with pytest.raises(SplitError, match="closed"):
        list(llm.stream(PROMPT))


def test_a_collected_client_says_goodbye(scripted, server):
    llm = SplitLLM()
    llm.generate(PROMPT, FIVE)
    thread = llm._thread._thread
    del llm
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()
    assert server.sent(wire.Bye)


def test_a_program_that_ends_without_close_ends_well(word_model):
    program = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from split_peers import Pair, ScriptedServer
        from sliceserve import SplitLLM
        from sliceserve.client import sdk

        class Server(ScriptedServer):
            async def _handle(self, link, token, message):
                print(type(message).__name__, flush=True)
                await super()._handle(link, token, message)

        server = Server()
        sdk.make_session = lambda config, dial: Pair(server, {word_model!r}).session
        llm = SplitLLM()
        stream = llm.stream([1], max_tokens=50)
        next(stream)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = done.stdout.split()
    assert (done.returncode, said[0], said[-1], done.stderr) == (0, "Open", "Bye", "")


def test_the_front_door_does_not_import_torch():
    program = "import sliceserve, sys; sliceserve.SplitError; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False"
    assert sliceserve.SplitLLM is SplitLLM
    with pytest.raises(AttributeError, match="no attribute 'SplitLM'"):
        _ = sliceserve.SplitLM
