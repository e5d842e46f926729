"""Every benchmark on a tiny random model, and replayed clients against a real server."""

import asyncio
import json
import time

import pytest
from typer.testing import CliRunner

from sliceserve.cli import app
from sliceserve.cli.bench.fleet_messages import Assignment, Client, Outcome, Recording
from sliceserve.cli.bench.open_loop import run_turn
from sliceserve.cli.bench.replay import part, record, replay
from sliceserve.cli.bench.shared_head import SharedHead, StartedOnce
from sliceserve.cli.bench.timeline import Timeline
from sliceserve.cli.bench.workload import Workload
from sliceserve.cli.local_server import local_server
from sliceserve.client.connection import Dialer
from sliceserve.client.errors import ConnectionRefused, RequestFailed
from sliceserve.client.session import SplitSession
from sliceserve.configs import (
    ClientConfig,
    CodecConfig,
    EngineConfig,
    LayerConfig,
    ModelConfig,
    Patience,
)
from sliceserve.engine.in_process import InProcessEngine
from sliceserve.models.resolve import fingerprint, resolve_model
from sliceserve.transport.messages import Hello
from sliceserve.transport.websocket import connect

CUTS = (2, 4)
WORK = Workload(num_prompts=2, input_len=5, output_len=6)


def bench(*args: str) -> dict:
    """The one JSON line of a benchmark."""
    result = CliRunner().invoke(app, ["bench", *args, "--json"])
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert "\x1b" not in result.stdout + result.stderr
    (line,) = result.stdout.splitlines()
    return json.loads(line)


def small(model: str, *args: str) -> list[str]:
    return ["--model", model, "--dtype", "float32", "--device", "cpu", *args]


@pytest.fixture(scope="module")
def server(tiny_model):
    cuts = ",".join(map(str, CUTS))
    options = ["--cuts", cuts, "--kv-cache-tokens", "2048", "--profiles", "off"]
    with local_server(small(tiny_model, *options)) as server:
        yield server


@pytest.fixture
def config(server, tiny_model):
    return ClientConfig(
        server=server.url,
        api_key=server.api_key,
        model=ModelConfig(model=tiny_model, dtype="float32", device="cpu"),
        codec=CodecConfig(name="int8"),
    )


@pytest.fixture
async def line(config):
    """A connection of a replaying client, for the first cut."""

    async def dial():
        return await connect(config.server, config.api_key)

    digest = fingerprint(resolve_model(config.model.model))
    connection = await Dialer(
        dial, Hello(fingerprint=digest, cut=CUTS[0], codec="int8/1"), Patience()
    ).connect()
    yield connection
    await connection.close()


def new_outcome() -> Outcome:
    return Outcome(client=0, cut=CUTS[0], timeline=Timeline(time.perf_counter()))


def test_throughput_of_two_backends(tiny_model):
    results = bench(
        *("throughput", "--backend", "whole", "--backend", "transformers"),
        *small(tiny_model, "--num-prompts", "3", "--concurrency", "2"),
        *("--input-len", "5", "--output-len", "4"),
    )["results"]
    assert [result["backend"] for result in results] == ["whole", "transformers"]
    for result in results:
        assert result["dtype"] == "float32"
        assert (result["num_prompts"], result["concurrency"]) == (3, 2)
        assert (result["input_len"], result["output_len"]) == (5, 4)
        assert result["tokens_per_s"] == pytest.approx(12 / result["seconds"])
        assert result["total_tokens_per_s"] == pytest.approx(27 / result["seconds"])
        assert result["ttft_ms"]["p50"] > 0
    assert results[0]["speedup"] == 1
    assert results[1]["speedup"] == pytest.approx(
        results[1]["tokens_per_s"] / results[0]["tokens_per_s"]
    )


@pytest.mark.e2e
def test_latency_of_a_split_stream(tiny_model):
    result = bench(
        *("latency", "--backend", "split", "--split", "2", "--codec", "float16"),
        *small(tiny_model, "--num-prompts", "2", "--input-len", "5", "--output-len", "6"),
    )
    assert (result["backend"], result["split"], result["codec"]) == ("split", 2, "float16/1")
    for name in ("ttft_ms", "tpot_ms", "itl_ms"):
        assert 0 < result[name]["p50"] <= result[name]["p95"] <= result[name]["p99"]
    assert result["uplink_bytes_per_token"] > 2 * 72
    assert 0 < result["uplink_reduction_vs_fp16"] < 1
    decode = result["decode"]
    assert decode.pop("tpot_ms") == pytest.approx(sum(decode.values()))
    assert decode["server_ms"] > 0


@pytest.mark.e2e
def test_clients_with_heads(server, tiny_model):
    result = bench(
        *("serve", "--server", server.url, "--api-key", server.api_key, "--codec", "float32"),
        *small(tiny_model, "--num-clients", "3", "--requests-per-client", "2"),
        *("--input-len", "5", "--output-len", "4"),
    )
    assert (result["num_requests"], result["num_errors"], result["first_error"]) == (6, 0, None)
    assert result["num_tokens"] == 24
    assert result["tokens_per_s"] == pytest.approx(24 / result["seconds"])
    assert [part["split"] for part in result["by_split"]] == list(CUTS)
    assert [part["num_requests"] for part in result["by_split"]] == [4, 2]
    assert result["uplink_bytes_per_token"] > 4 * 72
    assert result["server_busy_ms_per_token"] > 0
    assert 0 < result["server_busy_share"] <= 1
    assert result["ttft_ms"]["p50"] > 0


@pytest.mark.e2e
def test_replayed_clients_in_two_processes(server, tiny_model):
    result = bench(
        *("serve", "--server", server.url, "--api-key", server.api_key, "--replay"),
        *small(tiny_model, "--num-clients", "8", "--processes", "2", "--recordings", "2"),
        *("--splits", "4", "--input-len", "5", "--output-len", "4", "--codec", "float32"),
    )
    assert (result["replay"], result["num_processes"]) == (True, 2)
    assert (result["num_requests"], result["num_errors"]) == (16, 0)
    assert (result["num_tokens"], result["num_mismatched_tokens"]) == (64, 0)
    assert [part["split"] for part in result["by_split"]] == [4]


@pytest.mark.e2e
def test_a_cut_that_is_not_offered_is_a_sentence(server, tiny_model):
    args = ["serve", "--server", server.url, "--api-key", server.api_key, "--splits", "3"]
    result = CliRunner().invoke(app, ["bench", *args, *small(tiny_model), "--num-clients", "1"])
    assert result.exit_code == 1
    assert "rows cannot enter at layer 3; the cuts offered are 2, 4" in result.stderr
    assert result.stdout == ""


@pytest.mark.e2e
async def test_a_replay_gives_the_recorded_tokens(config, line):
    first, second = await record(config, CUTS[0], WORK.prompts(300), WORK.sampling)
    assert first.tokens != second.tokens
    for request_id, recording in enumerate([first, second, first], start=1):
        assert recording.num_prompt == 5
        assert (len(recording.packets), len(recording.tokens)) == (10, 6)
        outcome = new_outcome()
        await replay(line, request_id, recording, WORK.sampling, outcome)
        assert (len(outcome.timeline.tokens), outcome.num_mismatches) == (6, 0)
        assert outcome.num_packets == 10
        assert outcome.bytes_up > sum(map(len, recording.packets))


@pytest.mark.e2e
async def test_clients_come_and_stop_when_told(config):
    (told,) = await record(config, CUTS[0], WORK.prompts(300)[:1], WORK.sampling)
    clients = [
        Client(index=0, cut=CUTS[0], replays=[0] * 100, stop_s=0.0),
        Client(index=1, cut=CUTS[0], replays=[0, 0], start_s=0.2),
        Client(index=2, cut=CUTS[0], replays=[0, 0], start_s=0.1, stop_s=0.0),
    ]
    recordings = [told, part(told, told.num_prompt + 2, 4)]
    clients.append(Client(index=3, cut=CUTS[0], replays=[1]))
    assignment = Assignment(
        config=config, sampling=WORK.sampling, clients=clients, recordings=recordings
    )
    turn = await run_turn(config, [assignment], "test")
    by_client = [[one for one in turn.outcomes if one.client == i] for i in range(4)]
    assert [len(outcomes) for outcomes in by_client] == [1, 2, 0, 1]
    assert [len(one.timeline.tokens) for one in by_client[1]] == [6, 6]
    # Its answer is as long as the recorded one, whatever the sampling says.
    assert len(by_client[3][0].timeline.tokens) == 4
    assert by_client[1][0].timeline.start - by_client[0][0].timeline.start == pytest.approx(0.2)
    assert all(one.code is None and one.num_mismatches == 0 for one in turn.outcomes)
    assert 0 < turn.busy_s < turn.seconds
    assert turn.seconds > 0.2


@pytest.mark.e2e
async def test_tokens_unlike_the_recorded_ones_are_counted(config, line):
    (told,) = await record(config, CUTS[0], WORK.prompts(300)[:1], WORK.sampling)
    tokens = [told.tokens[0], *(token + 1 for token in told.tokens[1:3]), *told.tokens[3:5]]
    outcome = new_outcome()
    # Two are false, and the last one is missing.
    false = Recording(told.cut, told.num_prompt, told.packets, tokens)
    await replay(line, 1, false, WORK.sampling, outcome)
    assert (len(outcome.timeline.tokens), outcome.num_mismatches) == (6, 3)


@pytest.mark.e2e
async def test_a_refused_replay_says_why(line):
    too_long = Recording(CUTS[0], 100_000, [b"x"], [1])
    with pytest.raises(RequestFailed, match="100000"):
        await replay(line, 1, too_long, WORK.sampling, new_outcome())


@pytest.mark.e2e
async def test_nothing_is_recorded_at_a_cut_that_is_not_offered(config):
    with pytest.raises(ConnectionRefused, match="layer 3"):
        await record(config, 3, [[1, 2]], WORK.sampling)


@pytest.mark.e2e
async def test_clients_that_share_a_head_get_their_own_tokens(config):
    told = await record(config, CUTS[0], WORK.prompts(300), WORK.sampling)
    layers = LayerConfig(stop=CUTS[0])
    head = InProcessEngine(EngineConfig(model=config.model, layers=layers), config.codec)
    shared = StartedOnce(head)
    info = await shared.start()

    async def dial():
        return await connect(config.server, config.api_key)

    async def answer(name, prompt):
        hello = Hello(fingerprint=info.fingerprint, cut=CUTS[0], codec="int8/1")
        session = SplitSession(dial, lambda _: SharedHead(shared, name), hello)
        await session.start()
        tokens = [step.token.token_id async for step in session.generate(prompt, WORK.sampling)]
        await session.close()
        return tokens

    try:
        answers = [answer(str(i), prompt) for i, prompt in enumerate(WORK.prompts(300))]
        assert await asyncio.gather(*answers) == [one.tokens for one in told]
        # Closing a session leaves the head to the others.
        assert (await head.stats()).num_live == 0
    finally:
        await head.stop()


def test_codecs_on_hidden_states_and_on_synthetic_ones(tiny_model):
    results = bench(
        *("codec", "--model", tiny_model, "--device", "cpu", "--split", "3"),
        *("--hidden-size", "72,128", "--repeats", "2", "--codec", "float32", "--codec", "int8"),
    )["results"]
    assert [(one["codec"], one["hidden_size"]) for one in results] == [
        ("float32/1", 72),
        ("int8/1", 72),
        ("float32/1", 128),
        ("int8/1", 128),
    ]
    assert ["synthetic" in one["vectors"] for one in results] == [False, False, True, True]
    for one in results:
        exact = one["codec"] == "float32/1"
        assert (one["relative_mse"] == 0) == exact
        assert one["relative_mse"] < 1e-3
        assert one["bits_per_element"] == pytest.approx(32 if exact else 8.25, abs=0.3)
        for name in ("encode_us", "decode_us", "batch_encode_us", "batch_decode_us"):
            assert one[name] > 0
