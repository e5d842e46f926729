import json
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from sliceserve.models import gguf as converter
from sliceserve.models.errors import ModelError
from sliceserve.models.files import cache_dir
from sliceserve.models.gguf import convert_gguf
from sliceserve.models.gguf_tokenizer import tokenizer_files
from sliceserve.models.resolve import fingerprint, resolve_model
from sliceserve.models.spec import ModelSpec
from sliceserve.models.tokenizer import Tokenizer
from sliceserve.models.weights import WeightReader, find_tensors

gguf = pytest.importorskip("gguf")

ALPHABET = [*map(chr, [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)])]
ALPHABET += [chr(256 + i) for i in range(68)]
TOKENS = ["<|start|>", "<|end|>", "<tool>", *ALPHABET, "Ġt", "he", "Ġthe", "12"]
MERGES = ["Ġ t", "h e", "Ġt he", "1 2"]
TYPES = [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.USER_DEFINED]
TYPES += [gguf.TokenType.NORMAL] * (len(TOKENS) - 3)
TEMPLATE = "{% for m in messages %}<|start|>{{ m.content }}<|end|>{% endfor %}"
SIZES = {
    "vocab_size": len(TOKENS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
}
HUB_TO_GGUF = {
    "embed_tokens": "token_embd",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "norm": "output_norm",
    "lm_head": "output",
}


def make_model(arch: str, **changes):
    torch.manual_seed(1)
    config = AutoConfig.for_model(arch, **SIZES | changes)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Values that bfloat16 holds, so that nothing is lost on the way.
            parameter.copy_((parameter + 0.2 * torch.randn_like(parameter)).bfloat16())
    return model


def gguf_name(name: str) -> str:
    parts = name.removeprefix("model.").split(".")
    layer = f"blk.{parts[1]}." if parts[0] == "layers" else ""
    return f"{layer}{HUB_TO_GGUF[parts[-2]]}.{parts[-1]}"


def interleave(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Row order of llama heads in GGUF: 0, D/2, 1, D/2 + 1, …"""
    head_dim = len(weight) // num_heads
    half = head_dim // 2
    order = [
        h * head_dim + i + j * half for h in range(num_heads) for i in range(half) for j in (0, 1)
    ]
    return weight[order]


def write_gguf(path, model, arch, quantisation=None, rope_freqs=None, pre="smollm", extra=None):
    config = model.config
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(SIZES["head_dim"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types(TYPES)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    for key, value in (extra or {}).items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    if rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", rope_freqs)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        weight = tensor.float().numpy()
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        kind = name.split(".")[-2]
        if arch == "llama" and kind in heads:
            weight = interleave(weight, heads[kind])
        if quantisation is None or weight.ndim == 1:
            writer.add_tensor(gguf_name(name), weight)
        else:
            packed = gguf.quants.quantize(weight, quantisation)
            writer.add_tensor(gguf_name(name), packed, raw_dtype=quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    "arch, changes",
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True}),
        ("qwen2", {"head_dim": 8}),
        ("qwen3", {"tie_word_embeddings": True}),
    ],
)
def test_a_converted_model_computes_what_the_original_does(
    tmp_path, monkeypatch, load, runner, arch, changes
):
    # Qwen2 has heads of hidden_size / num_heads only.
    monkeypatch.setitem(SIZES, "head_dim", changes.get("head_dim", SIZES["head_dim"]))
    model = make_model(arch, **changes)
    folder = convert_gguf(write_gguf(tmp_path / "model.gguf", model, arch))
    ids = torch.randint(0, len(TOKENS), (9,))
    with torch.inference_mode():
        expected = model(ids.unsqueeze(0)).logits[0]
    got = runner([load(folder)], 9).run(ids)
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1", "BF16", "F16"])
def test_quantised_tensors_come_back_as_the_library_reads_them(tmp_path, monkeypatch, name):
    # Several chunks per tensor, the last of them short.
    monkeypatch.setattr(converter, "_CHUNK_ELEMENTS", 5 * SIZES["hidden_size"])
    quantisation = gguf.GGMLQuantizationType[name]
    model = make_model("llama")
    folder = convert_gguf(write_gguf(tmp_path / "model.gguf", model, "llama", quantisation))
    with WeightReader(folder, torch.float32, torch.device("cpu")) as weights:
        for hub_name, tensor in model.state_dict().items():
            expected = tensor.float().numpy()
            if expected.ndim > 1:
                packed = gguf.quants.quantize(expected, quantisation)
                expected = gguf.quants.dequantize(packed, quantisation)
            got = weights.tensor(hub_name, *tensor.shape)
            assert torch.equal(got, torch.tensor(expected).bfloat16().float()), hub_name


def test_large_models_are_written_in_several_files(tmp_path, monkeypatch, load):
    monkeypatch.setattr(converter, "_SHARD_BYTES", 10_000)
    folder = convert_gguf(write_gguf(tmp_path / "model.gguf", make_model("llama"), "llama"))
    files = set(find_tensors(folder).values())
    assert len(files) > 3
    assert all(f"-of-{len(files):05}." in file.name for file in files)
    load(folder)
    AutoModelForCausalLM.from_pretrained(folder)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def rope_factors(rope: dict) -> np.ndarray:
    plain = make_model("llama", rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    scaled = make_model("llama", rope_parameters=rope)
    factors = plain.model.rotary_emb.inv_freq / scaled.model.rotary_emb.inv_freq
    return factors.float().numpy()


def test_llama3_scaling_is_found_from_the_factors_of_the_frequencies(tmp_path):
    model = make_model("llama", rope_parameters=LLAMA3)
    factors = rope_factors(LLAMA3)
    path = write_gguf(tmp_path / "model.gguf", model, "llama", rope_freqs=factors)
    spec = ModelSpec.load(convert_gguf(path))
    assert spec.rope_theta == 500000.0
    assert (spec.rope_scaling.factor, spec.rope_scaling.original_max_positions) == (32.0, 8192)


def test_other_factors_of_the_frequencies_are_refused(tmp_path):
    model = make_model("llama", rope_parameters=LLAMA3)
    factors = rope_factors(LLAMA3 | {"original_max_position_embeddings": 1024})
    path = write_gguf(tmp_path / "model.gguf", model, "llama", rope_freqs=factors)
    with pytest.raises(ModelError, match="not those of Llama 3"):
        convert_gguf(path)


def test_the_tokenizer_comes_along(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", make_model("llama"), "llama")
    tokenizer = Tokenizer.load(convert_gguf(path))
    assert tokenizer.vocab_size == len(TOKENS)
    assert tokenizer.eos_token_ids == (1,)
    the, two = TOKENS.index("Ġthe"), TOKENS.index("2")
    # SmolLM keeps digits apart, merges or not.
    assert tokenizer.encode(" the12") == [the, TOKENS.index("1"), two]
    prompt = tokenizer.chat_prompt([{"role": "user", "content": " the"}])
    assert prompt == [0, the, 1]
    assert tokenizer.decode([0, the, 2, 1]) == " the<tool>"
    assert tokenizer.decode([0, the, 1], skip_special_tokens=False) == "<|start|> the<|end|>"


def test_chat_templates_by_name_come_along(tmp_path):
    named = {"tokenizer.chat_template.tool_use": "{{ tools[0] }}"}
    path = write_gguf(tmp_path / "model.gguf", make_model("llama"), "llama", extra=named)
    tokenizer = Tokenizer.load(convert_gguf(path))
    assert tokenizer.chat_template() == TEMPLATE
    assert tokenizer.chat_template(with_tools=True) == "{{ tools[0] }}"


def words(pre: str, text: str) -> list[str]:
    tokenizer = tokenizer_of(pre)
    return [text[slice(*span)] for _, span in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def tokenizer_of(pre: str, **changes) -> tokenizers.Tokenizer:
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.token_type": TYPES,
        "tokenizer.ggml.bos_token_id": 0,
    }
    text, _ = tokenizer_files(fields | changes)
    return tokenizers.Tokenizer.from_str(text)


TEXTS = ["It's 12345 é😀  x", "a\n\n  b\t c!!\n", "IT'LL  ½ ٣٤", "don't  ", "\r\n\r\n 7"]


@pytest.mark.parametrize(
    "pre, expected",
    [
        ("smollm", ["It", "'s", " ", "1", "2", "3", "4", "5", " é", "😀", " ", " x"]),
        ("llama-bpe", ["It", "'s", " ", "123", "45", " é", "😀", " ", " x"]),
        ("qwen2", ["It", "'s", " ", "1", "2", "3", "4", "5", " é", "😀", " ", " x"]),
    ],
)
def test_words_are_cut_as_the_family_does(pre, expected):
    assert words(pre, TEXTS[0]) == expected


@pytest.mark.parametrize("text", TEXTS)
def test_qwen2_agrees_with_transformers(text):
    vocab = {token: i for i, token in enumerate(TOKENS)}
    merges = [tuple(merge.split()) for merge in MERGES]
    reference = Qwen2Tokenizer(vocab, merges)
    assert tokenizer_of("qwen2").encode(text).ids == reference.encode(text)


def test_the_first_token_is_added_where_the_family_does():
    assert tokenizer_of("llama-bpe").encode(" the").ids[0] == 0
    no_bos = tokenizer_of("llama-bpe", **{"tokenizer.ggml.add_bos_token": False})
    assert no_bos.encode(" the").ids == [TOKENS.index("Ġthe")]
    assert tokenizer_of("smollm").encode(" the").ids == [TOKENS.index("Ġthe")]


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer.ggml.model": "llama"},
        {"tokenizer.ggml.pre": "tekken"},
    ],
)
def test_another_tokenizer_is_refused(changes):
    with pytest.raises(ModelError, match=r"not supported; supported: gpt2 with smollm"):
        tokenizer_of("smollm", **changes)


def test_another_architecture_is_refused(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", make_model("llama"), "gemma")
    with pytest.raises(ModelError, match=r"'gemma' is not supported; supported: llama, qwen2"):
        convert_gguf(path)


def test_an_unknown_tensor_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(HUB_TO_GGUF, "up_proj", "ffn_up_exps")
    path = write_gguf(tmp_path / "model.gguf", make_model("llama"), "llama")
    with pytest.raises(ModelError, match=r"no place for: blk\.0\.ffn_up_exps\.weight"):
        convert_gguf(path)


def test_a_scaling_that_the_decoder_lacks_is_refused(tmp_path):
    extra = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
    path = write_gguf(tmp_path / "model.gguf", make_model("llama"), "llama", extra=extra)
    with pytest.raises(ModelError, match="'yarn' is not supported"):
        convert_gguf(path)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all, by any means", b"\0" * 64])
def test_a_file_that_is_no_gguf_is_named(tmp_path, content):
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=r"bad\.gguf is not a \.gguf file"):
        convert_gguf(tmp_path / "bad.gguf")


def test_a_cut_file_is_named_and_leaves_nothing_behind(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", make_model("llama"), "llama")
    path.write_bytes(path.read_bytes()[:-5000])
    for _ in range(2):
        with pytest.raises(ModelError, match=r"model\.gguf is not a \.gguf file"):
            convert_gguf(path)
    assert [file.suffix for file in (cache_dir() / "gguf").iterdir()] == [".lock"]


def test_a_model_is_converted_once(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "model.gguf", make_model("llama"), "llama")
    folder = convert_gguf(path)
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(path.read_bytes())
    monkeypatch.setattr(converter, "_convert", None)
    assert resolve_model(str(copy)) == folder


def test_what_a_killed_process_left_is_replaced(tmp_path, load, monkeypatch):
    path = write_gguf(tmp_path / "model.gguf", make_model("llama"), "llama")
    convert = converter._convert

    def killed(path, folder, tell):
        (folder / "left.safetensors").write_text("half of it")
        folder.rename(folder.with_name("kept"))
        raise KeyboardInterrupt

    monkeypatch.setattr(converter, "_convert", killed)
    with pytest.raises(KeyboardInterrupt):
        convert_gguf(path)
    (lock,) = (cache_dir() / "gguf").glob("*.lock")
    (lock.parent / "kept").rename(lock.with_suffix(".part"))
    monkeypatch.setattr(converter, "_convert", convert)
    folder = convert_gguf(path)
    load(folder)
    assert not (folder / "left.safetensors").exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "model.gguf", make_model("llama"), "llama")
    monkeypatch.setenv("SLICESERVE_CACHE", str(path))
    with pytest.raises(ModelError, match=r"cannot write .*set SLICESERVE_CACHE"):
        convert_gguf(path)


CONVERT = """
import sys
from pathlib import Path
from sliceserve.models import gguf
from sliceserve.models.resolve import fingerprint
convert = gguf._convert
def noting(*args):
    print("converting")
    convert(*args)
gguf._convert = noting
print("ready", flush=True)
sys.stdin.readline()
folder = gguf.convert_gguf(Path(sys.argv[1]))
print(folder)
print(fingerprint(folder))
"""


@pytest.mark.e2e
def test_of_processes_that_ask_at_once_one_converts(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", make_model("llama"), "llama")
    command = [sys.executable, "-c", CONVERT, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate()[0].splitlines() for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert sum("converting" in output for output in outputs) == 1
    assert {tuple(output[-2:]) for output in outputs} == {
        (str(folder := convert_gguf(path)), fingerprint(folder))
    }
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
