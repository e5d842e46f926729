"""The options of the benchmarks. They import torch and the engine when they run, so that `--help`
comes at once."""

import asyncio
from typing import Annotated, get_args

import typer

from sliceserve.cli import options
from sliceserve.cli.bench.options import (
    BackendName,
    InputLen,
    Json,
    NumPrompts,
    OutputLen,
    Seed,
    backends_option,
    numbers,
)


def throughput(
    backend: Annotated[list[BackendName] | None, backends_option("whole")] = None,
    num_prompts: NumPrompts = 16,
    concurrency: Annotated[
        int, typer.Option(min=1, help="How many prompts are answered at a time.")
    ] = 8,
    input_len: InputLen = 64,
    output_len: OutputLen = 32,
    model: options.Model = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    split: options.Split = None,
    codec: options.Codec = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Tokens per second, for many prompts at once."""
    from sliceserve.cli.bench.report import finish
    from sliceserve.cli.bench.throughput import run, tables
    from sliceserve.cli.bench.workload import Workload

    config = options.client_config(
        None, model=model, dtype=dtype, device=device, split=split, codec=codec
    )
    work = Workload(num_prompts=num_prompts, input_len=input_len, output_len=output_len, seed=seed)
    names = backend or [BackendName.WHOLE]
    results = asyncio.run(run(names, config, work, concurrency))
    finish(results, json, *tables(results))


def latency(
    backend: Annotated[list[BackendName] | None, backends_option("whole and split")] = None,
    num_prompts: NumPrompts = 4,
    input_len: InputLen = 64,
    output_len: OutputLen = 32,
    model: options.Model = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    split: options.Split = None,
    codec: options.Codec = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """How long one stream waits for its tokens (TTFT, TPOT, ITL), and where the time goes."""
    from sliceserve.cli.bench.latency import run, tables
    from sliceserve.cli.bench.report import finish
    from sliceserve.cli.bench.workload import Workload

    config = options.client_config(
        None, model=model, dtype=dtype, device=device, split=split, codec=codec
    )
    work = Workload(num_prompts=num_prompts, input_len=input_len, output_len=output_len, seed=seed)
    names = backend or [BackendName.WHOLE, BackendName.SPLIT]
    results = asyncio.run(run(names, config, work))
    finish(results, json, *tables(results))


def serve(
    server: Annotated[
        str | None,
        typer.Option(
            help="Where `sliceserve serve` runs.", show_default="one is started for the run"
        ),
    ] = None,
    num_clients: Annotated[
        int,
        typer.Option(
            min=1,
            help="Clients at once. A client is a connection of its own that answers one prompt "
            "after the other; clients of one cut and process share the first layers.",
        ),
    ] = 8,
    requests_per_client: Annotated[
        int, typer.Option(min=1, help="How many prompts each client answers.")
    ] = 2,
    input_len: InputLen = 64,
    output_len: OutputLen = 32,
    splits: Annotated[
        str | None,
        typer.Option(
            help='Cuts that the clients use in turn, as "8,15,22".',
            show_default="all that the server offers",
        ),
    ] = None,
    codec: options.Codec = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes over which the clients are spread.")
    ] = 1,
    replay: Annotated[
        bool,
        typer.Option(
            help="Run the first layers once for each recorded prompt, before the clock; clients "
            "then send the recorded packets and compare the tokens that come back. Sockets, "
            "frames and the server's work stay real, and thousands of clients fit one machine."
        ),
    ] = False,
    recordings: Annotated[
        int, typer.Option(min=1, help="Prompts that are recorded for each cut, with --replay.")
    ] = 4,
    model: options.Model = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    api_key: options.ServerKey = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Many split clients at once against one server."""
    from sliceserve.cli.bench.report import finish
    from sliceserve.cli.bench.serve import Load, run, tables
    from sliceserve.cli.bench.workload import Workload

    config = options.client_config(
        None,
        server=server,
        model=model,
        dtype=dtype,
        device=device,
        codec=codec,
        api_key=api_key,
    )
    load = Load(
        num_clients=num_clients,
        requests_per_client=requests_per_client,
        splits=tuple(numbers(splits)) if splits else (),
        num_processes=min(processes, num_clients),
        num_recordings=recordings if replay else 0,
    )
    work = Workload(
        num_prompts=num_clients * requests_per_client,
        input_len=input_len,
        output_len=output_len,
        seed=seed,
    )
    result = asyncio.run(run(config, work, load, own=server is None))
    finish([result], json, *tables(result))


def codec(
    codec: Annotated[
        list[str] | None,
        typer.Option(
            help="calibrated, slicer, int8, rans, float32, float16 or bfloat16; repeatable.",
            show_default="all",
        ),
    ] = None,
    hidden_size: Annotated[
        str,
        typer.Option(
            help="Elements of a vector, as a list. At the model's own size they are its hidden "
            "states, at others synthetic and heavy-tailed."
        ),
    ] = "576,4096",
    device: options.Device = None,
    no_transform: Annotated[
        bool,
        typer.Option("--no-transform", help="calibrated: by a profile that has no matrices."),
    ] = False,
    repeats: Annotated[
        int, typer.Option(min=1, help="Times are the median of so many calls.")
    ] = 50,
    model: options.Model = None,
    split: options.Split = None,
    json: Json = False,
) -> None:
    """Time per token, bits per element and error of the codecs."""
    from sliceserve.cli.bench.codec import run, tables
    from sliceserve.cli.bench.report import finish
    from sliceserve.configs.codec import CodecName

    names = codec or get_args(CodecName)
    settings = [options.client_config(None, codec=name).codec for name in names]
    config = options.client_config(None, model=model, split=split, device=device, dtype="float32")
    results = asyncio.run(run(settings, numbers(hidden_size), config, repeats, not no_transform))
    finish(results, json, *tables(results))
