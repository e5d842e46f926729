"""The commands, put together; and the one place where an error becomes a sentence.

Commands import torch and the engine when they run, so that `--help` comes at once.
"""

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import sliceserve
from sliceserve.cli.bench import bench
from sliceserve.cli.calibrate import calibrate
from sliceserve.cli.chat import chat
from sliceserve.cli.console import stderr
from sliceserve.cli.demo import demo
from sliceserve.cli.evaluate import evaluate
from sliceserve.cli.fetch import fetch
from sliceserve.cli.gateway import gateway
from sliceserve.cli.serve import serve
from sliceserve.cli.version import version
from sliceserve.configs.loading import ConfigError

DEBUG = "SLICESERVE_DEBUG"
# 128 and the number of SIGINT, as shells have it.
_INTERRUPTED = 130


class Commands(TyperGroup):
    """Runs a command. An error is told in a sentence, with exit code 1; one that was not foreseen
    says so, and where its traceback is to be had. Usage errors have exit code 2: typer's own, and
    those of settings, wherever these come from. Ctrl-C ends quietly, with 130.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except KeyboardInterrupt:
            raise typer.Exit(_INTERRUPTED) from None
        except Exception as error:
            # typer's own say how it ends a command; older versions take them from click.
            is_typers = type(error).__module__.split(".")[0] in ("typer", "click")
            if is_typers or os.environ.get(DEBUG):
                raise
            stderr.print(f"[bold red]Error:[/] {_escaped(_sentence(error))}", soft_wrap=True)
            raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from error


def _sentence(error: Exception) -> str:
    """What a user can do something about. Exception types of this project are made to be read by
    users; looked up by module, because importing them all would take seconds."""
    if isinstance(error, OSError) or type(error).__module__.startswith("sliceserve."):
        return str(error)
    return (
        f"this should not have happened: {type(error).__name__}: {error}. Run it again with "
        f"{DEBUG}=1 for the traceback, and report it"
    )


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sliceserve {sliceserve.__version__}")
        raise typer.Exit


@app.callback()
def sliceserve_command(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Serve a large language model cut in two: the device runs the first layers, the server the
    rest."""


for command in (serve, gateway, chat, demo, fetch, calibrate, version):
    app.command()(command)
app.command("eval")(evaluate)
app.add_typer(bench, name="bench")
