"""The command line: one module per command."""

from sliceserve.cli.app import app
from sliceserve.cli.signals import end_on_sigterm


def main() -> None:
    """The console script."""
    end_on_sigterm()
    app(prog_name="sliceserve")
