"""A tiny model that knows bytes, some runs of them, and an end."""

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

RUNS = ['{"', '":', '",', ', "', '": "', "true", '"}', "\n  ", "an", "and"]
# Not a multiple of 32, and more than there are tokens.
VOCAB_SIZE = 301


def byte_tokenizer():
    """Tokens of all bytes, of `RUNS`, and two special ones."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocab = {symbol: i for i, symbol in enumerate(sorted(alphabet))}
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merges = []
    for run in RUNS:
        symbols = splitter.pre_tokenize_str(run)[0][0]
        for end in range(2, len(symbols) + 1):
            if symbols[:end] not in vocab:
                vocab[symbols[:end]] = len(vocab)
                merges.append((symbols[: end - 1], symbols[end - 1]))
    backend = Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in ("<|end|>", "<|call|>")])
    return backend


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """In place of the folder's own: one with a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    backend = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=72,
        intermediate_size=100,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=12,
        max_position_embeddings=512,
        initializer_range=0.3,
        eos_token_id=backend.token_to_id("<|end|>"),
        bos_token_id=backend.token_to_id("<|call|>"),
    )
    model = LlamaForCausalLM(config).eval()
    path = tmp_path_factory.mktemp("tiny-bytes")
    model.save_pretrained(path)
    backend.save(str(path / "tokenizer.json"))
    return path, model
