"""`sliceserve gateway`: OpenAI's API on the device, with the split model behind it."""

from sliceserve.cli import options
from sliceserve.cli.console import stderr
from sliceserve.configs import GatewayConfig


@options.takes(GatewayConfig)
def gateway(settings: GatewayConfig) -> None:
    """Offer OpenAI's API on this device: the first layers run here, the others on the server."""
    name = settings.model.model
    with stderr.status(
        f"Loading the first layers of {name}, connecting to {settings.server} …"
    ) as status:
        from sliceserve.api.gateway import run_gateway
        from sliceserve.api.server import run

        def ready(url: str) -> None:
            status.stop()
            stderr.print(
                f"{name}, split with {settings.server}, is served on {url} (Ctrl-C stops it)\n"
                f"  programs speak OpenAI's API at {url}/v1",
                markup=False,
                soft_wrap=True,
            )

        run(run_gateway(settings, ready))
