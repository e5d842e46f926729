"""`sliceserve bench`: a module per benchmark; `commands` has their options."""

import typer

from sliceserve.cli.bench import commands

bench = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Measure speed and bytes: tables on stdout, or one JSON line.",
)
for command in (commands.throughput, commands.latency, commands.serve, commands.codec):
    bench.command()(command)
