"""`sliceserve fetch`: have a model on this machine before it is needed."""

from typing import Annotated

import typer

from sliceserve.cli.console import stderr
from sliceserve.configs import DEFAULT_MODEL


def fetch(
    model: Annotated[
        str, typer.Argument(help="A hub name, a .gguf file, a folder, or the default model.")
    ] = DEFAULT_MODEL,
    trust_remote_code: Annotated[
        bool, typer.Option(help="Download the code that comes with a model, too.")
    ] = False,
) -> None:
    """Download or convert a model once, and print its folder."""
    with stderr.status(f"Fetching {model} …"):
        from sliceserve.models.resolve import fingerprint, resolve_model

        path = resolve_model(model, trust_remote_code)
        # Reads all weights; kept in the cache, so that servers and clients start without it.
        fingerprint(path)
    typer.echo(path)
