"""Every example, as written, against a server and a gateway."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.model, pytest.mark.timeout(1000)]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server_url(start, with_profiles):
    options = ("--port", "0", "--cuts", "8,22", "--kv-cache-tokens", "1024")
    server = start("serve", "--json", *options, **with_profiles)
    line = server.stdout.readline()
    assert line, server.stderr.read()
    yield json.loads(line)["url"]
    server.send_signal(signal.SIGTERM)
    server.communicate(timeout=60)


def run_example(name: str, url: str) -> str:
    example = subprocess.run(
        [sys.executable, f"examples/{name}.py", url],
        cwd=ROOT,
        # Where a script finds the package whether it is installed or not.
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert example.returncode == 0, example.stderr
    return example.stdout


def test_quickstart(server_url):
    out = run_example("quickstart", server_url)
    assert "split=22 of 30" in out and "connected)" in out
    assert "times fewer than in fp16" in out


def test_async_many_prompts(server_url):
    out = run_example("async_many_prompts", server_url)
    assert "The capital of France is Paris" in out
    assert out.count("ms to begin]") == 5


def test_choosing_a_cut(server_url):
    header, *rows, advice = run_example("choosing_a_cut", server_url).splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["8", "22"]
    assert all(len(row.split()) == 6 for row in rows)
    assert header.startswith("layers here")
    assert advice.startswith(("Take split=8:", "Take split=22:"))


def test_chat_with_tools(server_url):
    pytest.importorskip("openai")
    call, answer = run_example("chat_with_tools", server_url).split("\n", 1)
    assert call.startswith("year_of_first_ascent({")
    assert " -> " in call and answer.strip()


def test_gateway_openai_client(start, server_url):
    pytest.importorskip("openai")
    gateway = start("gateway", "--json", "--server", server_url, "--port", "0")
    line = gateway.stdout.readline()
    assert line, gateway.stderr.read()
    url = json.loads(line)["url"]
    assert len(run_example("gateway_openai_client", url).split()) > 5
