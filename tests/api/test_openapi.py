"""The server's own description, and that it is true."""

import asyncio
import os
import sys
from dataclasses import replace

import jsonschema
import pytest
from asgi_client import asgi_client

from sliceserve.configs import ChatConfig
from sliceserve.engine.messages import Open

# A template that goes on with the last message cannot where that one is empty or a call.
CONFIG = """
[[operations]]
include-path = "/tokenize"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "404"]
"""
# Random names of models are not found; so named, requests reach the engine, and may be too long,
# or have tokens that there are not.
KNOWN_MODEL = """
import schemathesis

@schemathesis.hook
def before_call(context, case, kwargs):
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = "tiny"
"""
JUDGED_LATER = """
[checks]
positive_data_acceptance.expected-statuses = ["2xx", "400", "404"]
"""


@pytest.fixture
def backend_of(backend_of):
    """With a template that takes messages in any order, for a schema cannot tell of another."""
    template = "{% for message in messages %}{{ message['role'] ~ message['content'] }}{% endfor %}"
    chat = ChatConfig(template=template)

    def make(engine, name="tiny"):
        return replace(backend_of(engine, name), chat=chat)

    return make


@pytest.fixture
def schemathesis(tmp_path):
    """Runs it as people do, and returns its exit status and its words."""

    async def run(url, config, *options, hooks=None):
        (tmp_path / "schemathesis.toml").write_text(config)
        env = {}
        if hooks is not None:
            (tmp_path / "hooks.py").write_text(hooks)
            env["SCHEMATHESIS_HOOKS"] = "hooks"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
            *("run", f"{url}/openapi.json", "--checks", "all", "--generation-deterministic"),
            *("--no-color", "--continue-on-failure", "--warnings", "off", *options),
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path), **env},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        words, _ = await process.communicate()
        return process.returncode, words.decode()

    return run


async def test_a_stranger_finds_no_failure(serve, fake, schemathesis):
    served = await serve(fake("Hello"))
    status, words = await schemathesis(served.url, CONFIG, "--max-examples", "3")
    assert status == 0, words
    assert "No issues found" in words, words


async def test_requests_that_reach_the_engine_are_answered_as_described(serve, fake, schemathesis):
    engine = fake("Hello", max_model_len=4000)
    served = await serve(engine)
    options = ("--max-examples", "25", "--mode", "positive", "--phases", "examples,fuzzing")
    status, words = await schemathesis(served.url, JUDGED_LATER, *options, hooks=KNOWN_MODEL)
    assert status == 0, words
    assert len(engine.sent(Open)) > 10


async def test_every_route_is_described(backend_of, fake):
    async with asgi_client(backend_of(fake())) as client:
        document = (await client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            good = operation["responses"]["200"]["content"]
            assert all(content["schema"] for content in good.values()), path
            assert "422" not in operation["responses"]
    assert {"/v1/completions", "/v1/responses", "/tokenize", "/v1/models/{name}"} <= set(
        document["paths"]
    )
    assert "HTTPValidationError" not in schemas
    assert "securitySchemes" not in document["components"]


async def test_keys_are_in_the_description_where_they_are_asked_for(backend_of, fake):
    async with asgi_client(backend_of(fake()), api_keys={"sesame": "a"}) as client:
        document = (await client.get("/openapi.json")).json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["paths"]["/tokenize"]["post"]["security"] == [{"key": []}]
    assert "security" not in document["paths"]["/version"]["get"]
