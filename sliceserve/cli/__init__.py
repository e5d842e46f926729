"""The command line: one module per command."""

from sliceserve.cli.app import app


def main() -> None:
    """The console script."""
    app(prog_name="sliceserve")
