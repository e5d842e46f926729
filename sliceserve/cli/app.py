"""The commands, put together; and the one place where an error becomes a sentence.

Commands import torch and the engine when they run, so that `--help` comes at once.
"""

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import sliceserve
from sliceserve.cli.bench import bench
from sliceserve.cli.chat import chat
from sliceserve.cli.console import stderr
from sliceserve.cli.demo import demo
from sliceserve.cli.fetch import fetch
from sliceserve.cli.gateway import gateway
from sliceserve.cli.serve import serve

DEBUG = "SLICESERVE_DEBUG"


class Commands(TyperGroup):
    """Runs a command. An error that was foreseen is told in a sentence, with exit code 1; any
    other is a bug and keeps its traceback. Usage errors are typer's own, with exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            if os.environ.get(DEBUG) or not (sentence := _foreseen(error)):
                raise
            stderr.print(f"[bold red]Error:[/] {_escaped(sentence)}", soft_wrap=True)
            raise typer.Exit(1) from error


def _foreseen(error: BaseException) -> str:
    """The sentence for an error that a user can mend; "" for a bug.

    Exception types of this project are made to be read by users. Looked up by module, because
    importing them all would take seconds.
    """
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, BrokenPipeError):
        return ""
    if isinstance(error, OSError) or type(error).__module__.startswith("sliceserve."):
        return str(error)
    return ""


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sliceserve {sliceserve.__version__}")
        raise typer.Exit


@app.callback()
def sliceserve_command(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Serve a large language model cut in two: the device runs the first layers, the server the
    rest."""


for command in (serve, gateway, chat, demo, fetch):
    app.command()(command)
app.add_typer(bench, name="bench")
