"""A .gguf file to the safetensors, configuration and tokenizer that the rest reads, once.

The weights are dequantised to bfloat16, tensor by tensor, so that memory stays far below the
model's size.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from sliceserve.models.errors import ModelError
from sliceserve.models.files import cache_dir, content_digest
from sliceserve.models.gguf_tokenizer import tokenizer_files
from sliceserve.models.rotary import inverse_frequencies, stretch
from sliceserve.models.spec import ModelSpec, RopeScaling

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

# Part of the cache key: raise it when a conversion comes out differently.
_FORMAT = 2
_SHARD_BYTES = 2 << 30
# Elements dequantised at once: small enough for the temporaries to stay in the processor's cache.
_CHUNK_ELEMENTS = 1 << 19

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_GLOBAL_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_ROPE_FACTORS = "rope_freqs.weight"


def convert_gguf(path: Path, tell: Callable[[str], None] = lambda sentence: None) -> Path:
    """The folder with the model of a .gguf file, converted now unless it was before.

    Folders are kept in the cache folder by the file's content. Processes that ask at the same time
    wait for one of them, and ``tell`` hears how far it is. Raises ModelError for a file that cannot
    be read or a model that the decoder cannot run.
    """
    folder = cache_dir() / "gguf" / f"{content_digest([path])[:32]}-{_FORMAT}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _convert_into(folder, path, tell)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"cannot write the converted model to {folder}: {error}; set SLICESERVE_CACHE to a "
            "folder with room for it"
        ) from error
    return folder


def _convert_into(folder: Path, path: Path, tell: Callable[[str], None]) -> None:
    """All of the folder or, if anything fails, none of it."""
    part = folder.with_suffix(".part")
    # Left behind by a process that was killed.
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        _convert(path, part, tell)
        os.rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _convert(path: Path, folder: Path, tell: Callable[[str], None]) -> None:
    reader = _open(path)
    config = _config(reader)
    eos_token_ids = [
        token_id
        for kind in ("eos", "eot", "eom")
        if (token_id := _optional(reader, f"tokenizer.ggml.{kind}_token_id")) is not None
    ]
    tokenizer, tokenizer_config = tokenizer_files(
        {
            key: field.contents()
            for key, field in reader.fields.items()
            if key.startswith("tokenizer.")
        }
    )
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"eos_token_id": eos_token_ids})
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    # What cannot run is refused before the long part.
    _write_weights(
        reader,
        ModelSpec.load(folder),
        config["model_type"],
        folder,
        lambda percent: tell(f"Converting {path.name}: {percent} %"),
    )


def _open(path: Path) -> GGUFReader:
    # Needed for .gguf files alone.
    import gguf

    try:
        return gguf.GGUFReader(path)
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise ModelError(f"{path} is not a .gguf file that can be read: {error}") from error


def _optional(reader: GGUFReader, key: str, default: Any = None) -> Any:
    field = reader.get_field(key)
    return default if field is None else field.contents()


def _required(reader: GGUFReader, key: str, default: Any = None) -> Any:
    value = _optional(reader, key, default)
    if value is None:
        raise ModelError(f"the .gguf file has no {key}")
    if isinstance(value, list):
        raise ModelError(f"{key} must be the same in every layer")
    return value


def _config(reader: GGUFReader) -> dict[str, Any]:
    """What config.json says of the same model."""
    arch = _required(reader, "general.architecture")
    if arch not in _ARCHITECTURES:
        raise ModelError(
            f"GGUF architecture {arch!r} is not supported; supported: {', '.join(_ARCHITECTURES)}"
        )
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if "token_embd.weight" not in tensors:
        raise ModelError("the .gguf file has no tensor token_embd.weight")
    hidden_size = _required(reader, f"{arch}.embedding_length")
    num_heads = _required(reader, f"{arch}.attention.head_count")
    head_dim = _optional(reader, f"{arch}.attention.key_length", hidden_size // num_heads)
    rotary_dim = _optional(reader, f"{arch}.rope.dimension_count", head_dim)
    if rotary_dim != head_dim:
        raise ModelError(f"rotary dimensions must be all {head_dim} of a head, got {rotary_dim}")
    return {
        "architectures": [_ARCHITECTURES[arch]],
        "model_type": arch,
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "num_hidden_layers": _required(reader, f"{arch}.block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": _required(reader, f"{arch}.attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "intermediate_size": _required(reader, f"{arch}.feed_forward_length"),
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "max_position_embeddings": _required(reader, f"{arch}.context_length"),
        "rms_norm_eps": _required(reader, f"{arch}.attention.layer_norm_rms_epsilon"),
        "attention_bias": arch != "qwen2" and "blk.0.attn_q.bias" in tensors,
        "tie_word_embeddings": "output.weight" not in tensors,
        "rope_parameters": _rope_parameters(reader, arch, head_dim, tensors.get(_ROPE_FACTORS)),
        "bos_token_id": _optional(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _optional(reader, "tokenizer.ggml.eos_token_id"),
    }


def _rope_parameters(
    reader: GGUFReader, arch: str, head_dim: int, factors: ReaderTensor | None
) -> dict[str, Any]:
    theta = _optional(reader, f"{arch}.rope.freq_base", 10000.0)
    if factors is not None:
        return {"rope_theta": theta, **_llama3_parameters(theta, head_dim, factors)}
    kind = _optional(reader, f"{arch}.rope.scaling.type", "none")
    if kind == "none":
        return {"rope_theta": theta, "rope_type": "default"}
    factor = _optional(reader, f"{arch}.rope.scaling.factor", 1.0)
    return {"rope_theta": theta, "rope_type": kind, "factor": factor}


def _llama3_parameters(theta: float, head_dim: int, factors: ReaderTensor) -> dict[str, Any]:
    """GGUF keeps the factor of each frequency instead of the rule behind them. The rule of Llama
    3.1 and later differs in ``factor`` alone, which is that of the lowest frequency."""
    stored = torch.tensor(factors.data, dtype=torch.float32)  # (head_dim / 2,)
    rule = RopeScaling(
        factor=round(stored.max().item(), 3),
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_positions=8192,
    )
    inv_freq = inverse_frequencies(theta, head_dim)
    expected = inv_freq / stretch(inv_freq, rule)
    if stored.shape != expected.shape or not torch.allclose(stored, expected, rtol=1e-3):
        raise ModelError(f"the rotary factors in {_ROPE_FACTORS} are not those of Llama 3")
    return {
        "rope_type": "llama3",
        "factor": rule.factor,
        "low_freq_factor": rule.low_freq_factor,
        "high_freq_factor": rule.high_freq_factor,
        "original_max_position_embeddings": rule.original_max_positions,
    }


def _write_weights(
    reader: GGUFReader, spec: ModelSpec, arch: str, folder: Path, progress: Callable[[int], None]
) -> None:
    shards = _shards([tensor for tensor in reader.tensors if tensor.name != _ROPE_FACTORS])
    total_size = sum(_num_bytes(tensor) for shard in shards for tensor in shard)
    num_done = 0
    weight_map = {}
    for i, shard in enumerate(shards, start=1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        weights = {}
        for tensor in shard:
            weights[_hub_name(tensor.name)] = _weight(tensor, spec, arch)
            num_done += _num_bytes(tensor)
            progress(100 * num_done // total_size)
        save_file(weights, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(weights, file)
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _shards(tensors: list[ReaderTensor]) -> list[list[ReaderTensor]]:
    """Tensors in their order, in groups that fit a file of ``_SHARD_BYTES``."""
    shards: list[list[ReaderTensor]] = []
    room = 0
    for tensor in tensors:
        if not shards or _num_bytes(tensor) > room:
            shards.append([])
            room = _SHARD_BYTES
        shards[-1].append(tensor)
        room -= _num_bytes(tensor)
    return shards


def _num_bytes(tensor: ReaderTensor) -> int:
    return 2 * int(tensor.n_elements)


def _hub_name(name: str) -> str:
    if name in _GLOBAL_TENSORS:
        return _GLOBAL_TENSORS[name]
    match = _LAYER_TENSOR.fullmatch(name)
    if match is None or match[2] not in _LAYER_TENSORS:
        raise ModelError(f"the .gguf file holds a tensor that the decoder has no place for: {name}")
    return f"model.layers.{match[1]}.{_LAYER_TENSORS[match[2]]}.{match[3]}"


def _weight(tensor: ReaderTensor, spec: ModelSpec, arch: str) -> torch.Tensor:
    weight = _dequantise(tensor)
    if arch == "llama" and ".attn_q." in tensor.name:
        return _undo_permutation(weight, spec.num_heads)
    if arch == "llama" and ".attn_k." in tensor.name:
        return _undo_permutation(weight, spec.num_kv_heads)
    return weight


def _dequantise(tensor: ReaderTensor) -> torch.Tensor:
    """The tensor in bfloat16, a few rows at a time."""
    from gguf.quants import dequantize

    shape = tuple(int(n) for n in reversed(tensor.shape))
    rows_at_once = max(1, _CHUNK_ELEMENTS * shape[0] // int(tensor.n_elements))
    out = torch.empty(shape, dtype=torch.bfloat16)
    try:
        for i in range(0, shape[0], rows_at_once):
            chunk = dequantize(tensor.data[i : i + rows_at_once], tensor.tensor_type)
            out[i : i + rows_at_once] = torch.from_numpy(np.require(chunk, requirements="W"))
    except NotImplementedError as error:
        raise ModelError(f"cannot read {tensor.name}: {error}") from error
    return out


def _undo_permutation(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """GGUF pairs row 2i of a llama head with row 2i + 1 for rotation, here row i goes with row
    i + head_dim/2."""
    return weight.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).reshape(weight.shape)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
