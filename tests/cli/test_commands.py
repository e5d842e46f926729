"""The command line itself: help, settings from flags, and errors as sentences."""

import socket
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import sliceserve
from sliceserve.cli import app
from sliceserve.configs import ServerConfig
from sliceserve.configs.loading import load_config

COMMANDS = ["serve", "gateway", "chat", "demo", "fetch"]


@pytest.fixture
def run(monkeypatch):
    monkeypatch.delenv("SLICESERVE_DEBUG", raising=False)

    def invoke(*args, **kwargs):
        return CliRunner().invoke(app, list(args), prog_name="sliceserve", **kwargs)

    return invoke


def printed_config(result) -> ServerConfig:
    assert result.exit_code == 0, result.output
    import msgspec
    import yaml

    return msgspec.convert(yaml.safe_load(result.stdout), ServerConfig)


def test_no_command_shows_the_commands(run):
    result = run("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert command in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run, command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"sliceserve {command}" in result.stdout


def test_the_version_is_shown(run):
    assert run("--version").stdout.strip() == f"sliceserve {sliceserve.__version__}"


def test_help_needs_no_torch():
    code = "import sys; import sliceserve.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize(
    "args",
    [
        ["serve", "--port", "http"],
        ["demo", "--split", "x"],
        ["serve", "--dtype", "float8"],
        ["gateway", "--codec", "zip"],
    ],
)
def test_wrong_usage_is_exit_code_2(run, args):
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("args", "meant"), [(["sreve"], "serve"), (["serve", "--prot"], "--port")])
def test_a_wrong_name_tells_the_nearest(run, args, meant):
    result = run(*args)
    assert result.exit_code == 2
    assert meant in result.stderr


def test_flags_become_settings(run):
    result = run(
        *("serve", "--print-config", "--model", "some/model", "--port", "0", "--cuts", "4, 9"),
        *("--dtype", "bfloat16", "--device", "cpu", "--max-model-len", "512"),
        *("--kv-cache-tokens", "1024", "--first-layer", "2", "--admission", "worst-case"),
        *("--max-queued", "3", "--max-packet-bytes", "1000"),
        *("--block-size", "32", "--max-tokens-per-step", "64", "--max-requests", "8"),
        *("--tensor-parallel", "2"),
        *("--served-model-name", "name", "--drain-timeout", "1.5", "--host", "::1"),
    )
    config = printed_config(result)
    engine = config.engine
    assert (engine.model.model, engine.model.dtype, engine.model.device) == (
        "some/model",
        "bfloat16",
        "cpu",
    )
    assert engine.model.max_model_len == 512
    assert engine.tensor_parallel == 2
    assert (engine.layers.first, engine.layers.cuts) == (2, (4, 9))
    assert (engine.cache.num_tokens, engine.cache.block_size) == (1024, 32)
    assert (engine.scheduler.max_tokens_per_step, engine.scheduler.max_requests) == (64, 8)
    assert (engine.scheduler.admission, engine.scheduler.max_queued) == ("worst-case", 3)
    assert engine.scheduler.max_packet_bytes == 1000
    assert (config.host, config.port) == ("::1", 0)
    assert (config.served_model_name, config.drain_timeout_s) == ("name", 1.5)


@pytest.mark.parametrize(
    ("command", "flag"),
    [("serve", "--api-key"), ("chat", "--api-key"), ("gateway", "--api-key")],
)
def test_keys_are_not_printed(run, command, flag):
    printed = run(command, "--print-config", flag, "sesame").stdout
    assert "<hidden>" in printed
    assert "sesame" not in printed


def test_no_flags_are_the_defaults(run):
    assert printed_config(run("serve", "--print-config")) == load_config(ServerConfig, env={})


def test_flags_beat_the_environment_and_the_file(run, tmp_path):
    path = tmp_path / "server.yaml"
    path.write_text("port: 1\nhost: file\nserved_model_name: file\n")
    result = run(
        *("serve", "--print-config", "--config", str(path), "--port", "3"),
        env={"SLICESERVE_PORT": "2", "SLICESERVE_HOST": "env"},
    )
    config = printed_config(result)
    assert (config.port, config.host, config.served_model_name) == (3, "env", "file")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["serve", "--config", "/nowhere.yaml"], "cannot read /nowhere.yaml"),
        (["serve", "--config", "labtop-server"], "did you mean laptop-server?"),
        (["serve", "--config", "edge-client-cpu"], "there is no setting server"),
        (["serve", "--cuts", "a,b"], "engine.layers.cuts must be a list"),
        (["chat", "--sparsity", "1.5"], "sparsity must be at least 0 and below 1, got 1.5"),
    ],
)
def test_a_wrong_setting_is_a_sentence(run, args, words):
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_foreseen_error_is_a_sentence(run):
    result = run("fetch", "./nowhere")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: there is no model './nowhere'")


def test_a_port_in_use_is_a_sentence(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("serve", "--port", str(port))
    assert result.exit_code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr


def test_debugging_shows_the_error_itself(run):
    result = run("fetch", "./nowhere", env={"SLICESERVE_DEBUG": "1"})
    assert type(result.exception).__name__ == "ModelError"


def test_a_bug_says_where_its_traceback_is_to_be_had(run, monkeypatch):
    def broken(*args):
        raise TypeError("a bug")

    monkeypatch.setattr("sliceserve.models.resolve.resolve_model", broken)
    result = run("fetch")
    assert result.exit_code == 1
    assert "TypeError: a bug" in result.stderr
    assert "SLICESERVE_DEBUG=1" in result.stderr
    assert isinstance(run("fetch", env={"SLICESERVE_DEBUG": "1"}).exception, TypeError)


def test_an_interrupt_is_no_traceback(run, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("sliceserve.models.resolve.resolve_model", interrupted)
    result = run("fetch")
    assert (result.exit_code, result.stderr) == (130, "")
