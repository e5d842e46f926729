"""Code that a model wrote, run in a child process that may do little.

Limits on time, memory, files and, unless root runs it, processes; an empty folder to work in, an
empty environment, and where the system allows it a network namespace with nothing in it. It keeps
accidents in, not an attacker out: run it where nothing can be lost.
"""

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import tempfile

_SECONDS = 10
_MEMORY_BYTES = 1 << 30
_FILE_BYTES = 1 << 20
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000


def runs_without_error(program: str, seconds: int = _SECONDS) -> bool:
    """Whether a Python program ends by itself, within ``seconds`` and without an error."""
    with tempfile.TemporaryDirectory(prefix="sliceserve-") as folder:
        # This file is the child's script. Isolated: nothing but the standard library is imported.
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(seconds)],
            cwd=folder,
            env={},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            child.communicate(program.encode(errors="replace"), seconds)
            return child.returncode == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            # Whatever it has started goes with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _confine(seconds: int) -> None:
    # Without rights for it, the network stays.
    ctypes.CDLL(None).unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: _MEMORY_BYTES,
        resource.RLIMIT_FSIZE: _FILE_BYTES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_NPROC: 0,
    }
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most))


if __name__ == "__main__":
    code = compile(sys.stdin.buffer.read().decode(), "<program>", "exec")
    _confine(int(sys.argv[1]))
    exec(code, {"__name__": "__main__"})
