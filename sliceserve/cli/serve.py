"""`sliceserve serve`: the server."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sliceserve.cli import options
from sliceserve.cli.console import stderr
from sliceserve.configs import ServerConfig

if TYPE_CHECKING:
    from rich.status import Status


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

    with stderr.status(f"Loading {settings.engine.model.model} …") as status:
        run(_serve(settings, json, status))


async def _serve(settings: ServerConfig, json: bool, status: "Status") -> None:
    from sliceserve.api.server import run_server

    announcements: list[asyncio.Task[None]] = []

    def ready(url: str) -> None:
        status.stop()
        announcements.append(asyncio.create_task(_announce(url, settings, json)))

    def tell(sentence: str) -> None:
        status.update(f"{sentence} …")

    await run_server(settings, ready, tell)


async def _announce(url: str, settings: ServerConfig, json: bool) -> None:
    """Say what is served, as a client sees it."""
    import httpx

    key = next(iter(settings.tenant_of_key), None)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(headers=headers, trust_env=False) as http:
        info = (await http.get(f"{url}/v1/split/info")).raise_for_status().json()
    if json:
        import msgspec

        typer.echo(msgspec.json.encode({"url": url, **info}))
    else:
        stderr.print(_in_words(url, info), markup=False, soft_wrap=True)


def _in_words(url: str, info: dict[str, Any]) -> str:
    cuts = [str(cut) for cut in info["cuts"]]
    lines = [f"{info['model']} is served on {url} (Ctrl-C stops it)"]
    if info["thin"]:
        lines.append(f"  any client     speaks OpenAI's API at {url}/v1")
    if cuts:
        layers = f"{' or '.join(cuts)} of the {info['num_layers']} layers"
        lines.append(f"  split clients  run the first {layers} themselves")
        middle = cuts[len(cuts) // 2]
        lines.append(f"  try it         sliceserve chat --server {url} --split {middle}")
    return "\n".join(lines)
