import json

import pytest
import torch
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from sliceserve.models.errors import ModelError
from sliceserve.models.rotary import cos_sin_table
from sliceserve.models.spec import ModelSpec, RopeScaling

LLAMA = {
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
    "eos_token_id": 7,
}
LLAMA3_SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}


@pytest.fixture
def spec_of(tmp_path):
    def spec_of(config: dict, generation: dict | None = None) -> ModelSpec:
        (tmp_path / "config.json").write_text(json.dumps(config))
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        return ModelSpec.load(tmp_path)

    return spec_of


def test_what_a_config_leaves_out_follows_from_the_rest(spec_of):
    spec = spec_of(LLAMA)
    assert (spec.num_kv_heads, spec.head_dim, spec.rope_theta) == (4, 16, 10000.0)
    assert spec.windows == (None,) * 4
    assert not spec.tie_word_embeddings
    assert spec.rope_scaling is None


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_missing_size_is_named(spec_of, key):
    config = dict(LLAMA)
    del config[key]
    with pytest.raises(ModelError, match=rf"config\.json has no '{key}'"):
        spec_of(config)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3_SCALING}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3_SCALING}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3_SCALING}},
    ],
)
def test_old_and_new_rope_settings_say_the_same(spec_of, rope):
    spec = spec_of(LLAMA | rope)
    assert spec.rope_theta == 5e5
    assert spec.rope_scaling == RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=1024
    )


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 1e4},
        {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.5},
        {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3_SCALING},
    ],
)
@pytest.mark.parametrize("head_dim", [16, 128])
def test_angles_are_those_of_transformers(spec_of, rope, head_dim):
    config = LLAMA | {"rope_parameters": rope, "head_dim": head_dim}
    table = cos_sin_table(spec_of(config), torch.device("cpu"))
    positions = torch.arange(4096).unsqueeze(0)
    reference = LlamaRotaryEmbedding(AutoConfig.for_model(**config))
    cos, sin = reference(torch.empty(1), positions)  # (1, 4096, head_dim), each half twice
    half = head_dim // 2
    expected = torch.cat((cos[0, :, :half], sin[0, :, :half]), dim=-1)
    assert table.dtype == torch.float32
    # A rounding of the frequency grows with the position.
    torch.testing.assert_close(table, expected, rtol=0, atol=2e-3)
    torch.testing.assert_close(table[:64], expected[:64], rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["yarn", "dynamic", "longrope"])
def test_other_rope_scalings_are_refused(spec_of, kind):
    with pytest.raises(ModelError, match=f"'{kind}' is not supported; supported: default"):
        spec_of(LLAMA | {"rope_scaling": {"rope_type": kind, "factor": 2.0}})


def test_a_part_of_the_head_rotated_is_refused(spec_of):
    with pytest.raises(ModelError, match=r"partial_rotary_factor must be 1"):
        spec_of(LLAMA | {"partial_rotary_factor": 0.5})


QWEN = LLAMA | {"model_type": "qwen2", "sliding_window": 32}


@pytest.mark.parametrize(
    "config, windows",
    [
        (LLAMA | {"model_type": "mistral"}, (4096,) * 4),
        (LLAMA | {"model_type": "mistral", "sliding_window": 9}, (9,) * 4),
        (LLAMA | {"model_type": "mistral", "sliding_window": None}, (None,) * 4),
        (QWEN, (None,) * 4),
        (QWEN | {"use_sliding_window": True}, (None,) * 4),
        (QWEN | {"use_sliding_window": True, "max_window_layers": 3}, (None, None, None, 32)),
        (
            QWEN
            | {
                "model_type": "qwen3",
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            (32, None, 32, None),
        ),
    ],
)
def test_windows_by_layer(spec_of, config, windows):
    assert spec_of(config).windows == windows


@pytest.mark.parametrize(
    "in_config, generation, expected",
    [
        (7, None, (7,)),
        (7, {"eos_token_id": [9, 7]}, (9, 7)),
        (None, {"eos_token_id": 3}, (3,)),
        ([1, 2], {}, (1, 2)),
        (None, None, ()),
    ],
)
def test_end_tokens_are_those_of_both_files(spec_of, in_config, generation, expected):
    assert spec_of(LLAMA | {"eos_token_id": in_config}, generation).eos_token_ids == expected


def test_an_unknown_family_is_told_what_is_supported(spec_of):
    with pytest.raises(ModelError, match=r"'gpt2' is not supported.*llama, mistral, qwen2, qwen3"):
        spec_of(LLAMA | {"model_type": "gpt2"})


def test_quantised_checkpoints_are_refused(spec_of):
    with pytest.raises(ModelError, match="stored quantised"):
        spec_of(LLAMA | {"quantization_config": {"quant_method": "gptq"}})


def test_another_activation_is_refused(spec_of):
    with pytest.raises(ModelError, match="hidden_act must be silu, got 'gelu'"):
        spec_of(LLAMA | {"hidden_act": "gelu"})


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_broken_config_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        ModelSpec.load(tmp_path)
