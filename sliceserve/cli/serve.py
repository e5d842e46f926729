"""`sliceserve serve`: the server."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from sliceserve.cli import options
from sliceserve.cli.console import stderr
from sliceserve.configs import ServerConfig
from sliceserve.configs.engine import AdmissionMode, PolicyName
from sliceserve.configs.loading import dump_config

if TYPE_CHECKING:
    from rich.status import Status

_SCHEDULER = options.SERVER.engine.scheduler


def serve(
    model: options.Model = None,
    host: options.Host = None,
    port: options.Port = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    cuts: Annotated[
        str | None,
        typer.Option(
            help='Layers at which split clients may enter, as "8,15,22".',
            show_default="the quarters of the model",
        ),
    ] = None,
    first_layer: Annotated[
        int | None,
        typer.Option(
            help="Load the layers from this one on; above 0, split clients only.", show_default="0"
        ),
    ] = None,
    profiles: Annotated[
        str | None,
        typer.Option(
            help="auto makes the calibrated codec's profiles at a model's first start, which takes "
            "minutes; off does without that codec.",
            show_default=options.SERVER.engine.profiles,
        ),
    ] = None,
    tensor_parallel: Annotated[
        int | None,
        typer.Option(
            help="Divide every layer between so many GPUs, or processes on a CPU; it must divide "
            "the model's heads.",
            show_default=str(options.SERVER.engine.tensor_parallel),
        ),
    ] = None,
    max_model_len: options.MaxModelLen = None,
    kv_cache_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens that the KV cache holds.", show_default="a share of the free memory"
        ),
    ] = None,
    block_size: Annotated[
        int | None,
        typer.Option(
            help="Tokens in one block of the KV cache.",
            show_default=str(options.SERVER.engine.cache.block_size),
        ),
    ] = None,
    prefix_cache: Annotated[
        bool | None,
        typer.Option(
            "--prefix-cache/--no-prefix-cache",
            help="Keep the KV cache of what has been computed for requests that begin alike.",
            show_default="on" if options.SERVER.engine.cache.prefix_cache else "off",
        ),
    ] = None,
    max_tokens_per_step: Annotated[
        int | None,
        typer.Option(
            help="Most tokens of one forward pass.",
            show_default=str(_SCHEDULER.max_tokens_per_step),
        ),
    ] = None,
    max_requests: Annotated[
        int | None,
        typer.Option(
            help="Most requests that live at once; others wait or are refused.",
            show_default=str(_SCHEDULER.max_requests),
        ),
    ] = None,
    admission: Annotated[
        str | None,
        typer.Option(
            help=f"{' or '.join(get_args(AdmissionMode))}: compute requests again when KV blocks "
            "run out, or admit those alone whose longest course fits.",
            show_default=_SCHEDULER.admission,
        ),
    ] = None,
    max_queued: Annotated[
        int | None,
        typer.Option(
            help="Most split requests of a tenant that wait to be admitted.",
            show_default=str(_SCHEDULER.max_queued),
        ),
    ] = None,
    max_packet_bytes: Annotated[
        int | None,
        typer.Option(
            help="Most bytes of packets that are kept for replay.",
            show_default=f"{_SCHEDULER.max_packet_bytes >> 30} GiB",
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help=f"Who goes next: {', '.join(get_args(PolicyName))}; see docs/scheduling.md.",
            show_default=_SCHEDULER.policy,
        ),
    ] = None,
    target_itl_ms: Annotated[
        float | None,
        typer.Option(
            help="Keep steps so short that tokens follow each other within this many "
            "milliseconds, where prompts would hold them up.",
            show_default="no bound",
        ),
    ] = None,
    api_key: options.ApiKeys = None,
    served_model_name: Annotated[
        str | None,
        typer.Option(help="The model's name in the API.", show_default="the model's own"),
    ] = None,
    drain_timeout: Annotated[
        float | None,
        typer.Option(
            help="Seconds that live requests may go on after SIGTERM.",
            show_default=f"{options.SERVER.drain_timeout_s:g}",
        ),
    ] = None,
    api_workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that hold the clients' connections; more where one is always busy.",
            show_default=str(options.SERVER.api_workers),
        ),
    ] = None,
    config: options.ConfigFile = None,
    print_config: options.PrintConfig = False,
    json: Annotated[
        bool,
        typer.Option("--json", help="Say in one JSON line on stdout when requests can come."),
    ] = False,
) -> None:
    """Serve a model to split clients, and over OpenAI's API to all others."""
    settings = options.server_config(
        config,
        model=model,
        host=host,
        port=port,
        dtype=dtype,
        device=device,
        cuts=cuts,
        first_layer=first_layer,
        profiles=profiles,
        tensor_parallel=tensor_parallel,
        max_model_len=max_model_len,
        kv_cache_tokens=kv_cache_tokens,
        block_size=block_size,
        prefix_cache=prefix_cache,
        max_tokens_per_step=max_tokens_per_step,
        max_requests=max_requests,
        admission=admission,
        max_queued=max_queued,
        max_packet_bytes=max_packet_bytes,
        policy=policy,
        target_itl_ms=target_itl_ms,
        api_key=api_key,
        served_model_name=served_model_name,
        drain_timeout=drain_timeout,
        api_workers=api_workers,
    )
    if print_config:
        typer.echo(dump_config(settings), nl=False)
        return
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
