"""Tiny random models of each family, in every feature that a decoder must know."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

NUM_LAYERS = 3
COMMON = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES = {
    "llama": {"model_type": "llama", "head_dim": 8},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True, "num_key_value_heads": 1},
    "llama-bias": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama3-rope": {"model_type": "llama", "head_dim": 16, "rope_parameters": LLAMA3_ROPE},
    "linear-rope": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    },
    "mistral": {"model_type": "mistral", "sliding_window": 5},
    "mistral-no-window": {"model_type": "mistral", "sliding_window": None, "head_dim": 10},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2-window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 12, "num_key_value_heads": 4},
}


def make_model(family: str):
    torch.manual_seed(0)
    config = AutoConfig.for_model(**COMMON | FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        # Transformers starts biases at zero and norms at one, which would hide their absence.
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model
