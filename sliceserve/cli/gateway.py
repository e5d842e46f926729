"""`sliceserve gateway`: OpenAI's API on the device, with the split model behind it."""

from typing import Annotated, Any

import typer

from sliceserve.cli import options
from sliceserve.cli.console import stderr
from sliceserve.configs.loading import dump_config


@options.takes_codec
def gateway(
    server: options.Server = None,
    model: options.Model = None,
    split: options.Split = None,
    *,
    codec_options: dict[str, Any],
    dtype: options.Dtype = None,
    device: options.Device = None,
    api_key: options.ServerKey = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8001,
    gateway_key: Annotated[
        list[str] | None,
        typer.Option(
            help="A key that lets programs in; repeatable.", show_default="all are let in"
        ),
    ] = None,
    served_model_name: Annotated[
        str | None,
        typer.Option(help="The model's name in the API.", show_default="the server's name for it"),
    ] = None,
    drain_timeout: Annotated[
        float, typer.Option(min=0.0, help="Seconds that live requests may go on after SIGTERM.")
    ] = options.SERVER.drain_timeout_s,
    config: options.ConfigFile = None,
    print_config: options.PrintConfig = False,
) -> None:
    """Offer OpenAI's API on this device: the first layers run here, the others on the server."""
    settings = options.client_config(
        config,
        server=server,
        model=model,
        split=split,
        **codec_options,
        dtype=dtype,
        device=device,
        api_key=api_key,
    )
    if print_config:
        typer.echo(dump_config(settings), nl=False)
        return
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

        run(
            run_gateway(
                settings,
                ready,
                host=host,
                port=port,
                api_keys=tuple(gateway_key or ()),
                served_model_name=served_model_name,
                drain_timeout_s=drain_timeout,
            )
        )
