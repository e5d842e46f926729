"""From settings to a loaded engine."""

from dataclasses import replace
from pathlib import Path

import torch

from sliceserve.codec.base import Codec, max_packet_bytes
from sliceserve.codec.registry import build_codec, known_codecs
from sliceserve.configs import CodecConfig, EngineConfig, LayerConfig, ModelConfig
from sliceserve.engine.engine import Engine
from sliceserve.engine.grammars import Grammars
from sliceserve.engine.layers import Layers
from sliceserve.engine.messages import EngineInfo, ProfileInfo, packet_codec
from sliceserve.engine.parallel import Leader
from sliceserve.engine.profiles import Tell, encoder_for_profile, offered_profiles
from sliceserve.engine.runner import Runner
from sliceserve.models.decoder import Decoder
from sliceserve.models.errors import ModelError
from sliceserve.models.resolve import fingerprint, resolve_model
from sliceserve.models.shard import Shard, expect_divisible
from sliceserve.models.spec import ModelSpec
from sliceserve.scheduler.blocks import BlockManager
from sliceserve.scheduler.scheduler import Scheduler


def build_engine(
    config: EngineConfig,
    codec: CodecConfig | None = None,
    profile: str | None = None,
    tell: Tell = lambda sentence: None,
) -> Engine:
    """Load the layers and lay out the cache. ``codec`` encodes what leaves a head; ``profile`` is
    the digest of the one in the store that it needs, if it does. ``tell`` hears what takes long.

    Raises ModelError for a model that cannot be served as asked.
    """
    path = resolve_model(config.model.model, config.model.trust_remote_code, tell)
    spec = ModelSpec.load(path)
    chosen = _choose(config, path, spec)
    cuts = list(chosen.layers.cuts or ())
    # Before the layers, which take the memory that making profiles needs.
    offered = offered_profiles(path, cuts, tell) if cuts and config.profiles == "auto" else []
    leader = Leader(chosen) if config.tensor_parallel > 1 else None
    try:
        layers = Layers.load(chosen, leader or Shard())
        is_head = layers.decoder.stop < spec.num_layers
        info = _info(config, path, layers, cuts, [offer.info for offer in offered])
        runner = Runner(
            layers,
            max_rows=config.scheduler.max_tokens_per_step,
            encoder=_encoder(codec, path, layers.decoder, profile) if is_head else None,
            codecs={
                packet_codec(offer.info.codec, offer.info.digest): offer.codec for offer in offered
            },
            leader=leader,
        )
        runner.warm_up()
    except BaseException:
        if leader is not None:
            leader.close()
        raise
    scheduler = Scheduler(
        config.scheduler,
        BlockManager(
            layers.segments,
            config.cache.block_size,
            config.cache.prefix_cache,
            config.cache.prefix_packet_bytes,
        ),
        info.max_model_len,
        info.eos_token_ids,
        max_packet_bytes(spec.hidden_size),
    )
    grammars = Grammars(path, spec.vocab_size, spec.eos_token_ids)
    return Engine(info, config.scheduler, scheduler, runner, grammars)


def _choose(config: EngineConfig, path: Path, spec: ModelSpec) -> EngineConfig:
    """``config`` with what it leaves open chosen, as ``Layers.load`` wants it. Raises ModelError
    for what this model or machine cannot do."""
    first, stop = config.layers.first, config.layers.stop
    stop = spec.num_layers if stop is None else stop
    if not 0 <= first < stop <= spec.num_layers:
        raise ModelError(
            f"layers {first} to {stop} cannot be cut from {config.model.model}, which has "
            f"{spec.num_layers}; expected 0 ≤ first < stop ≤ {spec.num_layers}"
        )
    cuts = [] if stop < spec.num_layers else offered_cuts(config.layers, spec.num_layers)
    device, dtype = pick_device(config.model), pick_dtype(config.model)
    expect_divisible(spec, config.tensor_parallel)
    if device.type == "cuda" and torch.cuda.device_count() < config.tensor_parallel:
        raise ModelError(
            f"tensor_parallel {config.tensor_parallel} needs a GPU for each rank, but torch sees "
            f"{torch.cuda.device_count()}; take fewer ranks, or device cpu"
        )
    return replace(
        config,
        model=replace(
            config.model,
            model=str(path),
            dtype=str(dtype).removeprefix("torch."),
            device=device.type,
        ),
        layers=LayerConfig(first=first, stop=stop, cuts=tuple(cuts)),
    )


def _info(
    config: EngineConfig,
    path: Path,
    layers: Layers,
    cuts: list[int],
    profiles: list[ProfileInfo],
) -> EngineInfo:
    decoder, spec = layers.decoder, layers.decoder.spec
    is_head = decoder.stop < spec.num_layers
    return EngineInfo(
        model=config.model.model,
        model_path=str(path),
        fingerprint=fingerprint(path),
        dtype=str(layers.cache.dtype).removeprefix("torch."),
        device=layers.cache.device.type,
        num_layers=spec.num_layers,
        hidden_size=spec.hidden_size,
        vocab_size=spec.vocab_size,
        max_model_len=_max_model_len(config, spec, layers.segments[0].num_blocks),
        first_layer=decoder.first,
        stop_layer=decoder.stop,
        cuts=cuts,
        thin=decoder.first == 0 and not is_head,
        codecs=[*dict.fromkeys(profile.codec for profile in profiles), *known_codecs()],
        profiles=profiles,
        eos_token_ids=list(spec.eos_token_ids),
        block_size=config.cache.block_size if config.cache.prefix_cache else 0,
    )


def offered_cuts(layers: LayerConfig, num_layers: int) -> list[int]:
    """Entry layers for split clients: those configured, or the quarters of the model from
    ``layers.first`` on. Raises ModelError for one outside the model."""
    first = layers.first
    if layers.cuts is None:
        quarters = {round(num_layers * i / 4) for i in (1, 2, 3)} | {first}
        return sorted(cut for cut in quarters if max(1, first) <= cut < num_layers)
    for cut in layers.cuts:
        if not max(1, first) <= cut < num_layers:
            raise ModelError(
                f"cut {cut} is out of range: with layers {first} to {num_layers} here, rows can "
                f"enter at layers {max(1, first)} to {num_layers - 1}"
            )
    return sorted(set(layers.cuts))


def _encoder(
    config: CodecConfig | None, path: Path, decoder: Decoder, profile: str | None
) -> Codec:
    config = config or CodecConfig()
    if config.name == "calibrated":
        return encoder_for_profile(path, decoder.stop, profile, config)
    return build_codec(config, decoder.spec.hidden_size)


def pick_device(model: ModelConfig) -> torch.device:
    if model.device == "cuda" and not torch.cuda.is_available():
        raise ModelError("device cuda was asked for, but torch sees no CUDA device; use cpu")
    if model.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(model.device)


def pick_dtype(model: ModelConfig) -> torch.dtype:
    if model.dtype == "auto":
        return torch.bfloat16 if pick_device(model).type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, model.dtype)
    return dtype


def _max_model_len(config: EngineConfig, spec: ModelSpec, num_blocks: int) -> int:
    """A sequence must fit the model's positions and, alone, the cache."""
    limit = min(spec.max_position_embeddings, num_blocks * config.cache.block_size)
    asked = config.model.max_model_len
    if asked is None:
        return limit
    if not 1 < asked <= limit:
        raise ModelError(
            f"max_model_len {asked} is out of range: {config.model.model} and its KV cache take "
            f"2 to {limit} tokens"
        )
    return asked
