"""A server and a gateway as they really run: an engine process, a split client, signals."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import httpx
import msgspec
import openai
import psutil
import pytest

from sliceserve.api.gateway import run_gateway
from sliceserve.api.listening import ServerError
from sliceserve.api.server import run_server
from sliceserve.configs import (
    CacheConfig,
    CodecConfig,
    EngineConfig,
    GatewayConfig,
    LayerConfig,
    ModelConfig,
    ServerConfig,
)

pytestmark = pytest.mark.e2e

_MAIN = """
import sys, msgspec
from sliceserve.api.server import run, run_server
from sliceserve.configs import ServerConfig
config = msgspec.json.decode(sys.argv[1], type=ServerConfig)
run(run_server(config, lambda url, info: print(url, flush=True)))
"""


def server_config(model, **changes):
    return ServerConfig(
        engine=EngineConfig(
            model=ModelConfig(model=str(model), dtype="float32", device="cpu"),
            layers=LayerConfig(cuts=(1, 3, 5)),
            cache=CacheConfig(num_tokens=2048),
            profiles="off",
        ),
        port=0,
        served_model_name="tiny",
        **changes,
    )


@pytest.fixture(scope="module")
def server(model_path):
    """(process, url) of a server in a process of its own."""
    process = start_server(server_config(model_path, api_keys=("sesame",), api_workers=2))
    yield process, process.stdout.readline().decode().strip()
    process.kill()
    process.wait()


def start_server(config):
    """A process that says its URL when it is ready."""
    return subprocess.Popen(
        [sys.executable, "-c", _MAIN, msgspec.json.encode(config).decode()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@contextlib.asynccontextmanager
async def gateway(model_path, server_url, split):
    """The URL of a gateway in this event loop; it must end well at SIGTERM."""
    url = asyncio.get_running_loop().create_future()
    config = GatewayConfig(
        server=server_url,
        model=ModelConfig(model=str(model_path), dtype="float32", device="cpu"),
        split=split,
        codec=CodecConfig(name="float32"),
        api_key="sesame",
        port=0,
    )
    running = asyncio.create_task(run_gateway(config, url.set_result))
    await asyncio.wait({running, url}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    yield url.result()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(running, 30)


async def texts(base_url, **changes):
    """Answers to three prompts at once."""
    async with openai.AsyncOpenAI(
        base_url=f"{base_url}/v1", api_key="sesame", max_retries=0
    ) as client:
        answers = await asyncio.gather(
            *(
                client.completions.create(
                    model="tiny",
                    prompt=prompt,
                    max_tokens=12,
                    temperature=0.8,
                    seed=5,
                    extra_body={"ignore_eos": True},
                    **changes,
                )
                for prompt in ("a", "The quick brown fox", "xyz" * 20)
            )
        )
        return [(a.choices[0].text, a.usage.completion_tokens) for a in answers]


@pytest.mark.parametrize("split", [1, 5])
async def test_a_gateway_gives_the_text_of_the_whole_model(server, model_path, split):
    _, url = server
    whole = await texts(url)
    async with gateway(model_path, url, split) as gateway_url:
        assert await texts(gateway_url) == whole
        async with httpx.AsyncClient(base_url=gateway_url) as client:
            assert (await client.get("/health")).json() == {"status": "ok"}
            told = (await client.get("/metrics")).text
            assert "sliceserve:engine_steps_total" in told
            for part in ("head", "encode", "link", "queue", "tail", "sample"):
                labels = f'{{part="{part}",path="split"}}'
                num_tokens = re.search(rf"token_time_tokens_total{labels} (\S+)", told)
                assert float(num_tokens[1]) > 0, part
            assert re.search(r"split_uplink_fp16_bytes_total [1-9]", told)
            assert (await client.get("/v1/split/info")).status_code == 404
    async with httpx.AsyncClient(base_url=url) as client:
        text = (await client.get("/metrics")).text
    assert f'sliceserve:split_sessions{{cut="{split}"}} 0.0' in text
    for part in ("head", "encode", "link", "queue", "tail", "sample"):
        assert f'token_time_seconds_total{{part="{part}",path="split"}}' in text
    assert 'sliceserve:generation_tokens_total{path="split",tenant="default"}' in text


async def test_a_gateway_without_its_server_is_one_sentence(model_path):
    with pytest.raises(ServerError, match=r"127\.0\.0\.1:1\b"):
        async with gateway(model_path, "http://127.0.0.1:1", 1):
            pass


async def test_a_model_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(ServerError, match="cannot start"):
        await run_server(server_config(tmp_path / "none"))


def test_sigterm_lets_the_last_request_finish(server):
    process, url = server
    body = {"model": "tiny", "prompt": "x", "max_tokens": 100, "stream": True, "ignore_eos": True}
    headers = {"Authorization": "Bearer sesame"}
    with httpx.stream(
        "POST", f"{url}/v1/completions", json=body, headers=headers, timeout=60
    ) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        events = [line.removeprefix("data: ") for line in lines if line]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
    assert process.wait(30) == 0
    assert process.stderr.read() == b""


def test_nothing_outlives_a_server_that_is_killed(model_path):
    process = start_server(server_config(model_path))
    assert process.stdout.readline()
    children = psutil.Process(process.pid).children()
    assert len(children) == 2
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_the_death_of_the_engine_ends_server_and_workers(model_path):
    process = start_server(server_config(model_path, api_workers=2))
    url = process.stdout.readline().decode().strip()
    (engine,) = [c for c in psutil.Process(process.pid).children() if "engine" in c.cmdline()[2]]
    body = {"model": "tiny", "prompt": "x", "max_tokens": 200, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        children = psutil.Process(process.pid).children()
        engine.kill()
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert events[-1]["error"]["code"] == "engine_dead"
    assert "ended unexpectedly" in events[-1]["error"]["message"]
    _, words = process.communicate(timeout=30)
    assert process.returncode == 1
    assert b"ServerError: the engine has died: the engine process ended unexpectedly" in words
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_workers_keep_one_count_of_a_tenant_and_learn_of_new_keys(model_path, tmp_path):
    path = tmp_path / "keys.yaml"
    tenant = "tenants: [{name: lab, api_keys: [%s], tokens_per_day: 6}]"
    path.write_text(tenant % "old")
    process = start_server(server_config(model_path, api_keys_file=str(path), api_workers=2))
    try:
        url = process.stdout.readline().decode().strip()

        def ask(key):
            # A connection each: whichever worker is free takes it.
            body = {"model": "tiny", "prompt": "x", "max_tokens": 1}
            headers = {"Authorization": f"Bearer {key}"}
            return httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=60)

        # Each takes a token of prompt and one of answer.
        answers = [ask("old") for _ in range(8)]
        assert [answer.status_code for answer in answers].count(200) == 3
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(refused) == 5
        assert all(0 < int(answer.headers["retry-after"]) <= 86400 / 6 for answer in refused)
        path.write_text(tenant % "new")
        process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 30
        while ask("old").status_code != 401:
            assert time.monotonic() < deadline
        # Another key, and the same account.
        assert ask("new").status_code == 429
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()
