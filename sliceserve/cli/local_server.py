"""A server of our own on this machine, for as long as a command needs it."""

import contextlib
import os
import secrets
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import msgspec

_STOP_TIMEOUT_S = 15.0


class LocalServerError(RuntimeError):
    """The server did not come up; its own words are in the message."""


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A running server: where it is, the key that it asks for, and what it offers."""

    url: str
    api_key: str
    num_layers: int
    cuts: list[int]


@contextlib.contextmanager
def local_server(options: Sequence[str], timeout_s: float = 1800.0) -> Iterator[LocalServer]:
    """Run ``sliceserve serve`` with ``options`` in a process of its own, on a free port of the
    loopback, while the context is open. Raises LocalServerError if it is not ready in time.

    The first start of a model converts or downloads it and makes the codec's profiles, which may
    take minutes.
    """
    command = [sys.executable, "-m", "sliceserve", "serve", "--json"]
    command += ["--host", "127.0.0.1", "--port", "0", *options]
    # Other users of this machine can reach the port too.
    key = secrets.token_urlsafe()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, "SLICESERVE_API_KEYS": key},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            # Ctrl-C in the terminal is for the command, which ends the server.
            start_new_session=True,
        )
        try:
            ready = _first_line(process, log, timeout_s)
            yield LocalServer(ready["url"], key, ready["num_layers"], ready["cuts"])
        finally:
            _stop(process)


def _first_line(process: "subprocess.Popen[bytes]", log: IO[bytes], timeout_s: float) -> dict:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], timeout_s)
    if not readable:
        raise LocalServerError(f"the server was not ready within {timeout_s:g} s\n{_words(log)}")
    # The end of the stream is readable, too.
    if not (line := process.stdout.readline()):
        code = process.wait()
        raise LocalServerError(
            f"the server ended with exit code {code} before it was ready\n{_words(log)}"
        )
    return msgspec.json.decode(line, type=dict)


def _words(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace").strip() or "(it said nothing)"


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    assert process.stdout is not None
    process.stdout.close()
