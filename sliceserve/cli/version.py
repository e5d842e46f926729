"""`sliceserve version`: what runs here, for a report or a program."""

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import Annotated

import typer

import sliceserve

# What decides how a model runs.
_PARTS = ("torch", "triton", "transformers", "llguidance")


def version(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON line.")] = False,
) -> None:
    """Show the versions of SliceServe, of its protocol, and of what it runs on."""
    from sliceserve.transport.messages import PROTOCOL_VERSION

    versions: dict[str, str | int | None] = {
        "sliceserve": sliceserve.__version__,
        "protocol": PROTOCOL_VERSION,
        "python": platform.python_version(),
        **{name: _installed(name) for name in _PARTS},
    }
    if json:
        import msgspec

        typer.echo(msgspec.json.encode(versions))
        return
    for name, number in versions.items():
        typer.echo(f"{name} {number or '(not installed)'}")


def _installed(name: str) -> str | None:
    try:
        return version_of(name)
    except PackageNotFoundError:
        return None
