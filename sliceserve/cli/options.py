"""Options that commands share, and the settings that they add up to.

An option that is not given is None, and leaves its setting to the environment, the YAML file and
the defaults, in this order.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from sliceserve.configs import ClientConfig, ServerConfig
from sliceserve.configs.loading import load_config

SERVER = ServerConfig()
CLIENT = ClientConfig()

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file with settings, such as those in configs/."),
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print the settings that result as YAML, and stop.")
]
Model = Annotated[
    str | None,
    typer.Option(
        help="A hub name, a folder with safetensors, a .gguf file, or the default model.",
        show_default=SERVER.engine.model.model,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="auto, float32, float16 or bfloat16.", show_default=SERVER.engine.model.dtype
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="auto, cpu or cuda.", show_default=SERVER.engine.model.device),
]
MaxModelLen = Annotated[
    int | None,
    typer.Option(
        help="Most tokens of prompt and answer together.", show_default="the model's limit"
    ),
]
Host = Annotated[
    str | None,
    typer.Option(
        help="Address to listen on; 0.0.0.0 lets other machines in.", show_default=SERVER.host
    ),
]
Port = Annotated[
    int | None,
    typer.Option(help="Port to listen on; 0 takes a free one.", show_default=str(SERVER.port)),
]
ApiKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--api-key",
        help="A key that lets clients in; repeatable, and safer in SLICESERVE_API_KEYS.",
        show_default="all are let in",
    ),
]
Server = Annotated[
    str | None,
    typer.Option(help="Where `sliceserve serve` runs.", show_default=CLIENT.server),
]
ServerKey = Annotated[
    str | None,
    typer.Option(
        "--api-key", help="The server's key; safer in SLICESERVE_API_KEY.", show_default="none"
    ),
]
Split = Annotated[
    int | None,
    typer.Option(
        help="How many layers run here: one of the cuts that the server offers.",
        show_default="the middle one",
    ),
]
Codec = Annotated[
    str | None,
    typer.Option(
        help="slicer, int8, float32, float16 or bfloat16.", show_default=CLIENT.codec.name
    ),
]
Sparsity = Annotated[
    float | None,
    typer.Option(
        help="SLICER: share of elements that are dropped.",
        show_default=str(CLIENT.codec.slicer.sparsity),
    ),
]
Distortion = Annotated[
    float | None,
    typer.Option(
        help="SLICER: squared error allowed per block, relative to its energy.",
        show_default=str(CLIENT.codec.slicer.distortion),
    ),
]


_SERVER_KEYS = {
    "model": "engine.model.model",
    "dtype": "engine.model.dtype",
    "device": "engine.model.device",
    "max_model_len": "engine.model.max_model_len",
    "first_layer": "engine.layers.first",
    "cuts": "engine.layers.cuts",
    "kv_cache_tokens": "engine.cache.num_tokens",
    "block_size": "engine.cache.block_size",
    "max_tokens_per_step": "engine.scheduler.max_tokens_per_step",
    "max_requests": "engine.scheduler.max_requests",
    "host": "host",
    "port": "port",
    "api_key": "api_keys",
    "served_model_name": "served_model_name",
    "drain_timeout": "drain_timeout_s",
}

_CLIENT_KEYS = {
    "server": "server",
    "model": "model.model",
    "dtype": "model.dtype",
    "device": "model.device",
    "split": "split",
    "codec": "codec.name",
    "sparsity": "codec.slicer.sparsity",
    "distortion": "codec.slicer.distortion",
    "api_key": "api_key",
}


def server_config(path: Path | None, **options: Any) -> ServerConfig:
    """Settings of a server from options by name. Raises ConfigError."""
    return load_config(ServerConfig, path, overrides=_given(options, _SERVER_KEYS))


def client_config(path: Path | None, **options: Any) -> ClientConfig:
    """Settings of a split client from options by name. Raises ConfigError."""
    return load_config(ClientConfig, path, overrides=_given(options, _CLIENT_KEYS))


def _given(options: dict[str, Any], keys: dict[str, str]) -> dict[str, Any]:
    return {keys[name]: value for name, value in options.items() if value is not None}
