"""The conversation in the terminal, with a model that repeats what it was asked."""

import sys
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from sliceserve.cli import app
from sliceserve.client.stats import RequestStats, SessionStats
from sliceserve.engine.generation import GenerationError, TextChunk


class Parrot:
    """Stands for SplitLLM. Keeps the conversations that it was given."""

    split, num_layers, codec = 8, 30, "slicer/1"

    def __init__(self, config):
        self.config = config
        self.conversations = []
        self.closed = False
        total = RequestStats(num_requests=1, num_tokens=5, num_packets=10, bytes_up=1000, head_s=1)
        total.num_cached_head, total.num_cached_server = 64, 48
        self.stats = SessionStats(hidden_size=576, total=total)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.closed = True

    def stream(self, messages, **params):
        self.conversations.append((messages, params))
        text = messages[-1]["content"]
        if text == "too long":
            raise GenerationError("context_length_exceeded", "the prompt has 9999 tokens")
        for word in text.split():
            yield TextChunk(f"<{word}>", None)
        yield TextChunk("", None, "stop")


@pytest.fixture
def talk(monkeypatch):
    parrots = []

    def make(config):
        parrots.append(Parrot(config))
        return parrots[-1]

    monkeypatch.setitem(sys.modules, "sliceserve.client.sync", SimpleNamespace(SplitLLM=make))

    def converse(text, *args):
        result = CliRunner().invoke(app, ["chat", *args], input=text)
        return result, parrots[-1]

    return converse


def contents(conversation) -> list[str]:
    messages, _ = conversation
    return [f"{message['role']}: {message['content']}" for message in messages]


def test_answers_are_printed_and_nothing_else(talk):
    result, parrot = talk("hello you\n\nand again\n")
    assert result.exit_code == 0
    assert result.stdout == "<hello><you>\n<and><again>\n"
    assert result.stderr == ""
    assert parrot.closed


def test_the_conversation_grows(talk):
    _, parrot = talk("one\ntwo\n", "--system", "be brief")
    assert contents(parrot.conversations[1]) == [
        "system: be brief",
        "user: one",
        "assistant: <one>",
        "user: two",
    ]


def test_reset_begins_anew_and_keeps_the_instructions(talk):
    _, parrot = talk("one\n/reset\ntwo\n", "--system", "be brief")
    assert contents(parrot.conversations[1]) == ["system: be brief", "user: two"]


def test_quit_ends_it(talk):
    result, parrot = talk("/quit\nhello\n")
    assert (result.exit_code, parrot.conversations) == (0, [])
    assert parrot.closed


def test_stats_go_to_stderr(talk):
    result, _ = talk("/stats\n")
    assert result.stdout == ""
    assert "8 here, 22 on the server" in result.stderr
    assert "100 bytes by slicer/1" in result.stderr
    assert "64 tokens here, 48 not sent" in result.stderr
    assert "11.5 times fewer" in result.stderr


def test_an_unknown_command_is_not_sent_to_the_model(talk):
    result, parrot = talk("/stast\n")
    assert parrot.conversations == []
    assert "There is no command /stast" in result.stderr


def test_options_reach_the_model(talk):
    result, parrot = talk(
        "hello\n",
        *("--server", "http://far:1", "--split", "8", "--codec", "int8", "--api-key", "k"),
        *("--max-tokens", "7", "--temperature", "0.5"),
    )
    assert result.exit_code == 0
    config = parrot.config
    assert (config.server, config.split, config.codec.name) == ("http://far:1", 8, "int8")
    assert config.api_key == "k"
    assert parrot.conversations[0][1] == {"max_tokens": 7, "temperature": 0.5}


def test_a_refused_request_ends_a_script(talk):
    result, parrot = talk("too long\nnever asked\n")
    assert result.exit_code == 1
    assert "Error: the prompt has 9999 tokens" in result.stderr
    assert len(parrot.conversations) == 1
    assert parrot.closed
