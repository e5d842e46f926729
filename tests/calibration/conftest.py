import pytest

NUM_LAYERS = 4
VOCAB_SIZE = 300


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with a random Llama of 4 layers and a tokenizer whose token i is the word "wi"."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny-llama")
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCAB_SIZE)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLICESERVE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield path


@pytest.fixture(scope="session")
def text():
    """2560 words, some frequent."""
    import torch

    generator = torch.Generator().manual_seed(1)
    ids = (VOCAB_SIZE * torch.rand(2560, generator=generator) ** 3).int()
    return " ".join(f"w{i}" for i in ids.tolist())
