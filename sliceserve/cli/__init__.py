"""The command line: one module per command."""

import signal
import sys
from types import FrameType

from sliceserve.cli.app import app


def main() -> None:
    """The console script."""
    # Asked to end, a command ends what it has started. Servers have a way of their own: they drain.
    signal.signal(signal.SIGTERM, _end)
    app(prog_name="sliceserve")


def _end(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)
