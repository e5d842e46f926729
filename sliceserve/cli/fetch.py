"""`sliceserve fetch`: have a model on this machine before it is needed."""

from typing import Annotated

import typer

from sliceserve.cli.console import Working
from sliceserve.configs import DEFAULT_MODEL


def fetch(
    model: Annotated[
        str, typer.Argument(help="A hub name, a .gguf file, a folder, or the default model.")
    ] = DEFAULT_MODEL,
    trust_remote_code: Annotated[
        bool, typer.Option(help="Download the code that comes with a model, too.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print folder and fingerprint as one JSON line.")
    ] = False,
) -> None:
    """Download or convert a model once, and print its folder."""
    with Working(f"Fetching {model} …") as working:
        from sliceserve.models.resolve import fingerprint, resolve_model

        path = resolve_model(model, trust_remote_code, lambda words: working.say(f"{words} …"))
        working.say(f"Reading {path} …")
        # Reads all weights; kept in the cache, so that servers and clients start without it.
        digest = fingerprint(path)
    if json:
        import msgspec

        found = {"model": model, "path": str(path), "fingerprint": digest}
        typer.echo(msgspec.json.encode(found))
    else:
        typer.echo(path)
