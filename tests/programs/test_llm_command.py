"""The `llm` command, with the endpoint in its file of models."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("llm")


@pytest.fixture
def llm(endpoint, tmp_path):
    model = {
        "model_id": "sliced",
        "model_name": endpoint.model,
        "api_base": endpoint.base_url,
        "api_key_name": "sliced",
        "supports_tools": True,
        "supports_schema": True,
    }
    # Each file is YAML, of which JSON is a part.
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]))
    (tmp_path / "keys.json").write_text(json.dumps({"sliced": endpoint.api_key}))

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "llm", *arguments],
            # The default model's weights come in a plugin, whose other parts are not installed.
            env={**os.environ, "LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": ""},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


OPTIONS = ("-m", "sliced", "-o", "temperature", "0", "-o", "max_tokens", "24")


def test_a_prompt_and_its_continuation(llm):
    assert "Paris" in llm(*OPTIONS, "What is the capital of France?")
    assert llm("-c", *OPTIONS[2:], "And of Italy?").strip()
    (first, second) = json.loads(llm("logs", "--json", "-n", "2"))
    assert first["conversation_id"] == second["conversation_id"]


def test_an_answer_that_follows_a_schema(llm):
    answer = json.loads(llm(*OPTIONS, "--no-stream", "--schema", "age int", "Anna is 30. Her age?"))
    assert isinstance(answer["age"], int)


def test_a_tool(llm):
    """Whether a model this small calls it, is its own affair; it must be told of it."""
    function = 'def shoe_size(name: str) -> int:\n    "A person\'s shoe size"\n    return 44\n'
    assert llm(*OPTIONS, "--functions", function, "What is the shoe size of Anna?").strip()
