"""`sliceserve serve`: the server."""

from typing import TYPE_CHECKING, Annotated

import typer

from sliceserve.cli import options
from sliceserve.cli.console import Working, stderr
from sliceserve.configs import ServerConfig

if TYPE_CHECKING:
    from sliceserve.engine.messages import EngineInfo


@options.takes(ServerConfig)
def serve(
    settings: ServerConfig,
    json: Annotated[
        bool,
        typer.Option("--json", help="Say in one JSON line on stdout when requests can come."),
    ] = False,
) -> None:
    """Serve a model to split clients, and over OpenAI's API to all others."""
    from sliceserve.api.server import run

    with Working(f"Loading {settings.engine.model.model} …") as working:
        run(_serve(settings, json, working))


async def _serve(settings: ServerConfig, json: bool, working: Working) -> None:
    from sliceserve.api.server import run_server

    def ready(url: str, info: "EngineInfo") -> None:
        working.stop()
        name = settings.served_model_name or info.model
        if json:
            import msgspec
            from msgspec.structs import asdict

            from sliceserve.api.split import describe

            typer.echo(msgspec.json.encode({"url": url, **asdict(describe(name, info))}))
        else:
            stderr.print(_in_words(url, name, info), markup=False, soft_wrap=True)

    def tell(sentence: str) -> None:
        working.say(f"{sentence} …")

    await run_server(settings, ready, tell)


def _in_words(url: str, name: str, info: "EngineInfo") -> str:
    cuts = [str(cut) for cut in info.cuts]
    lines = [f"{name} is served on {url} (Ctrl-C stops it)"]
    if info.thin:
        lines.append(f"  any client     speaks OpenAI's API at {url}/v1")
    if cuts:
        layers = f"{' or '.join(cuts)} of the {info.num_layers} layers"
        lines.append(f"  split clients  run the first {layers} themselves")
        middle = cuts[len(cuts) // 2]
        lines.append(f"  try it         sliceserve chat --server {url} --split {middle}")
    return "\n".join(lines)
