"""From settings to a session that is not started yet."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from sliceserve.client.connection import Dial
from sliceserve.client.options import ClientOptions
from sliceserve.client.profiles import FetchProfile, fetch_profile
from sliceserve.client.session import SplitSession
from sliceserve.codec.registry import wire_id
from sliceserve.configs import CacheConfig, ClientConfig, EngineConfig, LayerConfig
from sliceserve.configs.codec import CodecName
from sliceserve.configs.loading import load_config
from sliceserve.configs.presets import find_config
from sliceserve.engine.client import EngineClient
from sliceserve.engine.in_process import InProcessEngine
from sliceserve.models.resolve import fingerprint, resolve_model
from sliceserve.models.spec import ModelSpec
from sliceserve.tracing import make_tracing
from sliceserve.transport.link import Link
from sliceserve.transport.messages import PROTOCOL_VERSION, Hello, Welcome
from sliceserve.transport.websocket import connect

# What a client's settings may be read from: a YAML file, a preset by its name, or what a file would
# hold.
Settings = str | Path | Mapping[str, Any] | ClientConfig


def read_settings(settings: Settings | None) -> ClientConfig:
    """Settings from a file or a mapping, with the environment's over them; those of a ClientConfig
    as they are. Raises ConfigError."""
    if isinstance(settings, ClientConfig):
        return settings
    return load_config(
        ClientConfig, find_config(settings) if isinstance(settings, str) else settings
    )


def put_over(base: ClientConfig, server: str | None, options: ClientOptions) -> ClientConfig:
    """``base`` with what was given besides; what is None was not."""
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    model = {name: given.pop(name) for name in ("model", "device", "dtype") if name in given}
    codec = given.pop("codec", base.codec)
    if isinstance(codec, str):
        codec = replace(base.codec, name=cast(CodecName, codec))
    return replace(
        base,
        server=base.server if server is None else server,
        model=replace(base.model, **model),
        codec=codec,
        **given,
    )


def make_session(config: ClientConfig, dial: Dial | None = None) -> SplitSession:
    """A session for a configuration, not started yet. Finds the model, and may read all of it:
    not for an event loop. Raises ModelError."""
    path = resolve_model(config.model.model, config.model.trust_remote_code)
    hello = Hello(
        protocol=PROTOCOL_VERSION,
        fingerprint=fingerprint(path),
        cut=config.split,
        codec=wire_id(config.codec, ModelSpec.load(path).hidden_size),
        hide_tokens=config.codec.calibrated.hide_tokens,
    )

    def make_head(welcome: Welcome) -> EngineClient:
        layers = LayerConfig(first=0, stop=welcome.cut)
        cache = CacheConfig(prefix_cache=config.prefix_cache)
        engine = EngineConfig(model=config.model, layers=layers, cache=cache)
        return InProcessEngine(engine, config.codec, welcome.profile)

    return SplitSession(
        dial or partial(dial_server, config),
        make_head,
        hello,
        config,
        fetch_from(config),
        make_tracing(config.otlp_traces_endpoint, "sliceserve-client"),
    )


async def dial_server(config: ClientConfig) -> Link:
    """A link to the server of a configuration. As `connect`."""
    return await connect(
        config.server, config.api_key, config.connect_timeout_s, ca_certs=config.ssl_ca_certs
    )


def fetch_from(config: ClientConfig) -> FetchProfile:
    """How to get profiles from the server of a configuration."""
    return partial(
        fetch_profile,
        config.server,
        config.api_key,
        config.timeout_s,
        ca_certs=config.ssl_ca_certs,
    )
