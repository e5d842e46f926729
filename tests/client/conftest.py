import asyncio
import json

import pytest
from split_peers import VOCAB, Pair, ScriptedServer


@pytest.fixture
def server() -> ScriptedServer:
    return ScriptedServer()


@pytest.fixture
async def pair(server):
    """A started session; at the end nothing of it may be left, here or on the server."""
    pair = Pair(server, timeout_s=5.0, resume_timeout_s=2.0)
    await pair.session.start()
    yield pair
    await pair.session.close()
    await pair.settled()
    assert not server.violations
    assert not server.live
    await asyncio.gather(*server.tasks)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not [task for task in left if "pair" not in repr(task)]


@pytest.fixture(scope="session")
def word_model(tmp_path_factory):
    """A folder with a tokenizer whose token i is the word "wi", and nothing else of a model."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    path = tmp_path_factory.mktemp("words")
    pretrained = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    pretrained.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}w1"
    pretrained.save_pretrained(path)
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return str(path)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, word_model):
    """A folder with a random Llama of 6 layers and a tokenizer, and its transformers model."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
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
    model = LlamaForCausalLM(config).eval()
    path = tmp_path_factory.mktemp("tiny-llama")
    AutoTokenizer.from_pretrained(word_model).save_pretrained(path)
    model.save_pretrained(path)
    return str(path), model


@pytest.fixture
def scripted(monkeypatch, server, word_model):
    """Clients that are made from now on talk to ``server``; the Pairs below them."""
    from sliceserve.client import sdk

    pairs = []

    def make_session(config, dial):
        pairs.append(Pair(server, word_model, timeout_s=5.0, resume_timeout_s=2.0))
        return pairs[-1].session

    monkeypatch.setattr(sdk, "make_session", make_session)
    return pairs
