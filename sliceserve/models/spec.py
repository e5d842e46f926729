"""What makes one model family differ from another, as data for one decoder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sliceserve.models.errors import ModelError
from sliceserve.models.files import read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How Llama 3.1 stretches rotary embeddings (transformers' "llama3"): wavelengths above
    ``original_max_positions / low_freq_factor`` grow by ``factor``, those below
    ``original_max_positions / high_freq_factor`` stay, those between are blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Everything that the decoder must know of a model besides its weights.

    ``rope_factor`` divides all rotary frequencies (transformers' "linear" scaling).
    ``windows[i]`` is layer i's sliding window in tokens, None where it sees the whole context.
    ``eos_token_ids`` end an answer.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_factor: float
    rope_scaling: RopeScaling | None
    windows: tuple[int | None, ...]
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...]

    @classmethod
    def load(cls, path: Path) -> "ModelSpec":
        """Read config.json and generation_config.json of a model's folder.

        Raises ModelError, saying what is supported, for a model that the decoder cannot run.
        """
        config = read_json(path / "config.json")
        try:
            return cls._from_config(config, read_eos_token_ids(path))
        except KeyError as error:
            raise ModelError(f"{path / 'config.json'} has no {error}") from error

    @classmethod
    def _from_config(cls, config: dict[str, Any], eos_token_ids: tuple[int, ...]) -> "ModelSpec":
        model_type = config.get("model_type")
        if model_type not in _FAMILIES:
            raise ModelError(
                f"model type {model_type!r} is not supported; supported: {', '.join(_FAMILIES)}"
            )
        if config.get("quantization_config"):
            raise ModelError(
                "this model's weights are stored quantised; take its unquantised variant "
                "(bfloat16 or float16 safetensors) or a .gguf file"
            )
        if config.get("hidden_act", "silu") != "silu":
            raise ModelError(f"hidden_act must be silu, got {config['hidden_act']!r}")
        num_heads = config["num_attention_heads"]
        common = {
            "num_layers": config["num_hidden_layers"],
            "hidden_size": config["hidden_size"],
            "num_heads": num_heads,
            "num_kv_heads": config.get("num_key_value_heads") or num_heads,
            "head_dim": config.get("head_dim") or config["hidden_size"] // num_heads,
            "intermediate_size": config["intermediate_size"],
            "vocab_size": config["vocab_size"],
            "max_position_embeddings": config["max_position_embeddings"],
            "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
            "tie_word_embeddings": config.get("tie_word_embeddings", False),
            "eos_token_ids": eos_token_ids,
        }
        return cls(**common | _rope(config) | _FAMILIES[model_type](config))


def read_eos_token_ids(path: Path) -> tuple[int, ...]:
    """Tokens that end an answer: those of generation_config.json, then those of config.json."""
    ids: list[int | None] = []
    for name in ("generation_config.json", "config.json"):
        if (path / name).exists():
            value = read_json(path / name).get("eos_token_id")
            ids += value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(i for i in ids if i is not None))


def _llama(config: dict[str, Any]) -> dict[str, Any]:
    attention_bias = config.get("attention_bias", False)
    return {
        "qkv_bias": attention_bias,
        "output_bias": attention_bias,
        "mlp_bias": config.get("mlp_bias", False),
        "qk_norm": False,
        "windows": (None,) * config["num_hidden_layers"],
    }


def _mistral(config: dict[str, Any]) -> dict[str, Any]:
    # Checkpoints without a window say null; transformers takes 4096 where the key is missing.
    window = config.get("sliding_window", 4096)
    return {
        "qkv_bias": False,
        "output_bias": False,
        "mlp_bias": False,
        "qk_norm": False,
        "windows": (window,) * config["num_hidden_layers"],
    }


def _qwen2(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "qkv_bias": True,
        "output_bias": False,
        "mlp_bias": False,
        "qk_norm": False,
        "windows": _qwen_windows(config),
    }


def _qwen3(config: dict[str, Any]) -> dict[str, Any]:
    attention_bias = config.get("attention_bias", False)
    return {
        "qkv_bias": attention_bias,
        "output_bias": attention_bias,
        "mlp_bias": False,
        "qk_norm": True,
        "windows": _qwen_windows(config),
        # Unlike the others, Qwen3 does not derive it from the hidden size.
        "head_dim": config.get("head_dim", 128),
    }


_FAMILIES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
}


def _qwen_windows(config: dict[str, Any]) -> tuple[int | None, ...]:
    num_layers = config["num_hidden_layers"]
    if not config.get("use_sliding_window", False):
        return (None,) * num_layers
    window = config.get("sliding_window", 4096)
    layer_types = config.get("layer_types") or [
        "sliding_attention" if i >= config.get("max_window_layers", 28) else "full_attention"
        for i in range(num_layers)
    ]
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """``rope_*`` fields from ``rope_parameters`` (transformers 5) or the older
    ``rope_theta`` and ``rope_scaling``."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "linear", "llama3"):
        raise ModelError(
            f"rotary scaling {kind!r} is not supported; supported: default, linear, llama3"
        )
    factor = rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if factor not in (None, 1):
        raise ModelError(f"partial_rotary_factor must be 1 for this family, got {factor}")
    scaling = None
    if kind == "llama3":
        scaling = RopeScaling(
            factor=rope["factor"],
            low_freq_factor=rope["low_freq_factor"],
            high_freq_factor=rope["high_freq_factor"],
            original_max_positions=rope["original_max_position_embeddings"],
        )
    return {
        "rope_theta": rope.get("rope_theta", config.get("rope_theta", 10000.0)),
        "rope_factor": rope["factor"] if kind == "linear" else 1.0,
        "rope_scaling": scaling,
    }
