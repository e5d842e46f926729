"""A tiny random Llama with a tokenizer, and text to evaluate it on."""

import json
import random

import pytest
import torch

NUM_TOKENS = 300


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with a random Llama of 6 layers whose token i is the word "wi", and its
    transformers model."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=300,
        hidden_size=72,
        intermediate_size=100,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=12,
        max_position_embeddings=256,
        initializer_range=0.3,
        eos_token_id=2,
        bos_token_id=1,
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny-llama")
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(path)
    vocabulary = {"<eos>" if i == 2 else f"w{i}": i for i in range(300)}
    words = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>").save_pretrained(path)
    return path, model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Nothing is kept from one test to the next."""
    monkeypatch.setenv("SLICESERVE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def whole(tiny):
    from sliceserve.configs import ModelConfig
    from sliceserve.evaluation.model import WholeModel

    return WholeModel(ModelConfig(model=str(tiny[0]), dtype="float32", device="cpu"))


@pytest.fixture
def text(tmp_path):
    """A file of three texts, ``NUM_TOKENS`` tokens together."""
    rng = random.Random(0)
    path = tmp_path / "text.jsonl"
    with path.open("w") as file:
        for _ in range(3):
            words = [f"w{rng.randrange(3, 300)}" for _ in range(NUM_TOKENS // 3)]
            file.write(json.dumps({"text": " ".join(words)}) + "\n")
    return path
