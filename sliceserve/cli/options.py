"""Options that commands share, and the settings that they add up to.

An option that is not given is None, and leaves its setting to the environment, the YAML file and
the defaults, in this order.
"""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from sliceserve.configs import ClientConfig, ServerConfig
from sliceserve.configs.codec import CodecName
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
    typer.Option(help=f"{', '.join(get_args(CodecName))}.", show_default=CLIENT.codec.name),
]
Sparsity = Annotated[
    float | None,
    typer.Option(
        help="slicer: share of elements that are dropped.",
        show_default=str(CLIENT.codec.slicer.sparsity),
    ),
]
Distortion = Annotated[
    float | None,
    typer.Option(
        help="Squared error allowed, relative to the energy: per token (calibrated) or per block "
        "(slicer).",
        show_default=f"none, {CLIENT.codec.slicer.distortion:g}",
    ),
]
BitsPerElement = Annotated[
    float | None,
    typer.Option(
        help="calibrated: mean size of a packet, per element of the hidden state.",
        show_default=str(CLIENT.codec.calibrated.bits_per_element),
    ),
]
BitsPerToken = Annotated[
    int | None,
    typer.Option(help="calibrated: largest size of a packet, in bits.", show_default="none"),
]
HideTokens = Annotated[
    bool | None,
    typer.Option(
        "--hide-tokens", help="calibrated: packets carry no token ids, and get larger for it."
    ),
]


def takes_codec(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options that choose a codec and steer it, in the place of its parameter
    ``codec_options``, which gets them as a dict."""
    shared = {
        "codec": Codec,
        "bits_per_element": BitsPerElement,
        "bits_per_token": BitsPerToken,
        "distortion": Distortion,
        "hide_tokens": HideTokens,
        "sparsity": Sparsity,
    }
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if parameter.name == "codec_options":
            parameters += [
                inspect.Parameter(name, keyword, default=None, annotation=annotation)
                for name, annotation in shared.items()
            ]
        else:
            parameters.append(parameter.replace(kind=keyword))

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(codec_options={name: given.pop(name) for name in shared}, **given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


_SERVER_KEYS = {
    "model": "engine.model.model",
    "dtype": "engine.model.dtype",
    "device": "engine.model.device",
    "max_model_len": "engine.model.max_model_len",
    "first_layer": "engine.layers.first",
    "profiles": "engine.profiles",
    "tensor_parallel": "engine.tensor_parallel",
    "cuts": "engine.layers.cuts",
    "kv_cache_tokens": "engine.cache.num_tokens",
    "block_size": "engine.cache.block_size",
    "prefix_cache": "engine.cache.prefix_cache",
    "max_tokens_per_step": "engine.scheduler.max_tokens_per_step",
    "max_requests": "engine.scheduler.max_requests",
    "admission": "engine.scheduler.admission",
    "max_queued": "engine.scheduler.max_queued",
    "max_packet_bytes": "engine.scheduler.max_packet_bytes",
    "policy": "engine.scheduler.policy",
    "target_itl_ms": "engine.scheduler.target_itl_ms",
    "host": "host",
    "port": "port",
    "api_key": "api_keys",
    "served_model_name": "served_model_name",
    "drain_timeout": "drain_timeout_s",
    "api_workers": "api_workers",
}

_CLIENT_KEYS = {
    "server": "server",
    "model": "model.model",
    "dtype": "model.dtype",
    "device": "model.device",
    "split": "split",
    "codec": "codec.name",
    "sparsity": "codec.slicer.sparsity",
    "bits_per_element": "codec.calibrated.bits_per_element",
    "bits_per_token": "codec.calibrated.bits_per_token",
    "hide_tokens": "codec.calibrated.hide_tokens",
    "api_key": "api_key",
}


def server_config(path: Path | None, **options: Any) -> ServerConfig:
    """Settings of a server from options by name. Raises ConfigError."""
    return load_config(ServerConfig, path, overrides=_given(options, _SERVER_KEYS))


def client_config(
    path: Path | None, distortion: float | None = None, **options: Any
) -> ClientConfig:
    """Settings of a split client from options by name. Raises ConfigError."""
    overrides = _given(options, _CLIENT_KEYS)
    if distortion is not None:
        # One idea in two codecs.
        for name in ("slicer", "calibrated"):
            overrides[f"codec.{name}.distortion"] = distortion
    return load_config(ClientConfig, path, overrides=overrides)


def _given(options: dict[str, Any], keys: dict[str, str]) -> dict[str, Any]:
    return {keys[name]: value for name, value in options.items() if value is not None}
