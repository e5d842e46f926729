"""`sliceserve gateway`: OpenAI's API on the device, with the split model behind it."""

from typing import Annotated

import typer

from sliceserve.cli import options
from sliceserve.cli.console import Working, stderr
from sliceserve.configs import GatewayConfig


@options.takes(GatewayConfig)
def gateway(
    settings: GatewayConfig,
    json: Annotated[
        bool,
        typer.Option("--json", help="Say in one JSON line on stdout when requests can come."),
    ] = False,
) -> None:
    """Offer OpenAI's API on this device: the first layers run here, the others on the server."""
    name = settings.model.model
    with Working(
        f"Loading the first layers of {name}, connecting to {settings.server} …"
    ) as working:
        from sliceserve.api.gateway import run_gateway
        from sliceserve.api.server import run

        def ready(url: str) -> None:
            working.stop()
            if json:
                import msgspec

                typer.echo(msgspec.json.encode({"url": url, "server": settings.server}))
                return
            stderr.print(
                f"{name}, split with {settings.server}, is served on {url} (Ctrl-C stops it)\n"
                f"  programs speak OpenAI's API at {url}/v1",
                markup=False,
                soft_wrap=True,
            )

        run(run_gateway(settings, ready))
