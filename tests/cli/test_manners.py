"""How commands behave in scripts: streams, colours, exit codes, completion, progress, signals."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from sliceserve.cli import console
from sliceserve.cli.console import Working, measured, progress

SLICESERVE = [sys.executable, "-m", "sliceserve"]
SCRIPTS = Path(__file__).parents[2] / "benchmarks"


def run(*args, **env):
    return subprocess.run(
        [*SLICESERVE, *args],
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def terminal(monkeypatch):
    """Standard error as a terminal, or as a file, whose words are kept."""

    def make(is_terminal):
        file = io.StringIO()
        monkeypatch.setattr(console, "stderr", Console(force_terminal=is_terminal, file=file))
        return file.getvalue

    return make


@pytest.mark.parametrize(
    "args", [["version", "--json"], ["serve", "--print-config", "--json"]], ids=" ".join
)
def test_with_json_stdout_is_one_line_of_it(args):
    result = run(*args, FORCE_COLOR="")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout)


def test_versions_for_a_program():
    versions = json.loads(run("version", "--json").stdout)
    assert run("--version").stdout == f"sliceserve {versions['sliceserve']}\n"
    assert versions["protocol"] >= 2
    assert versions["torch"]


@pytest.mark.parametrize("args", [["--help"], ["serve", "--prot", "1"], ["fetch", "./nowhere"]])
def test_no_colours_into_a_pipe(args):
    result = run(*args)
    assert "\x1b" not in result.stdout + result.stderr


def test_a_closed_pipe_is_no_traceback():
    process = subprocess.Popen(
        [*SLICESERVE, "serve", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    _, stderr = process.communicate(timeout=60)
    assert stderr == b""


@pytest.mark.parametrize(
    ("words", "expected"),
    [("sliceserve gate", "gateway"), ("sliceserve serve --kv-cache-t", "--kv-cache-tokens")],
)
def test_shells_complete(words, expected):
    position = len(words.split()) - 1
    result = run(_SLICESERVE_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(position))
    assert expected in result.stdout.split()


def test_what_is_over_at_once_is_not_told(terminal):
    told = terminal(False)
    with Working("Loading [it] …") as working:
        working.say("Still loading …")
    with progress("turns", 3) as advance:
        advance()
    assert told() == ""


def test_what_takes_longer_is_told_in_lines(terminal, monkeypatch):
    told = terminal(False)
    monkeypatch.setattr(console, "_TELL_AFTER_S", 0.0)
    with measured("turns") as update:
        for done in range(4):
            update(done, 9)
    # The last ones come too soon after the first.
    assert told() == "turns: 0 of 9\n"


@pytest.mark.parametrize("every_s", [0.01, 3600.0])
def test_news_of_what_takes_longer_is_told_now_and_then(terminal, monkeypatch, every_s):
    told = terminal(False)
    monkeypatch.setattr(console, "_TELL_AFTER_S", 0.0)
    monkeypatch.setattr(console, "_TELL_EVERY_S", every_s)

    def wait_for(text):
        while text not in told():
            time.sleep(0.001)

    with Working("Loading [it] …") as working:
        wait_for("Loading [it] …\n")
        working.say("Still loading …")
        if every_s < 1:
            wait_for("Still loading …\n")
    # Each once, and no more often than that.
    more = "Still loading …\n" if every_s < 1 else ""
    assert told() == f"Loading [it] …\n{more}"


def test_terminals_show_bars_and_spinners(terminal):
    told = terminal(True)
    with Working("Loading [it] …"):
        pass
    with progress("turns [all]", 2) as advance:
        advance()
        advance()
    assert "turns [all]" in told()


def test_sigterm_ends_what_a_program_has_started():
    code = (
        "import contextlib, time; from sliceserve.cli.signals import end_on_sigterm\n"
        "end_on_sigterm()\n"
        "with contextlib.ExitStack() as stack:\n"
        "    stack.callback(print, 'ended', flush=True)\n"
        "    print('started', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "ended\n"
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.stem)
def test_scripts_that_start_servers_end_them_at_sigterm(script):
    text = script.read_text()
    starts = any(word in text for word in ("own_server", "local_server", "open_backend"))
    assert not starts or "    end_on_sigterm()\n" in text


def test_ctrl_c_is_quiet():
    code = (
        "import os, signal\n"
        "from sliceserve.models import resolve\n"
        "resolve.resolve_model = lambda *args: os.kill(os.getpid(), signal.SIGINT)\n"
        "import sys; sys.argv = ['sliceserve', 'fetch']\n"
        "from sliceserve.cli import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (130, b"", b"")
