"""How a command ends when it is asked to."""

import signal
import sys
from types import FrameType


def end_on_sigterm() -> None:
    """From now on SIGTERM is an exception, so that what this program has started is ended too.
    Servers have a way of their own: they drain. For programs with a command line of their own that
    start servers; `main` calls it for all commands."""
    signal.signal(signal.SIGTERM, _end)


def _end(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)
