import contextlib
import json
import subprocess
import sys

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from sliceserve.models.errors import ModelError
from sliceserve.models.tokenizer import Tokenizer

TEMPLATE = (
    "{{ bos_token }}"
    "{% for m in messages %}"
    "{% if m.role == 'nobody' %}{{ raise_exception('who is that?') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}"
    "{% endfor %}"
    "{% if shout is defined %}!{% endif %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def folder(tmp_path):
    """A byte-level tokenizer that begins each text with <s>, and a chat template that does too."""
    vocab = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Backend(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = ["<s>", "</s>", "<|user|>", "<|assistant|>"]
    backend.add_special_tokens([AddedToken(name, special=True) for name in names])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    backend.enable_truncation(4)
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": TEMPLATE,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text('{"model_type": "llama", "eos_token_id": 257}')
    return tmp_path


def test_text_comes_back(folder):
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode("Grüße, 世界!")
    assert ids[0] == 256
    assert tokenizer.decode(ids) == "Grüße, 世界!"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>Grüße, 世界!"
    assert tokenizer.encode("Grüße, 世界!", add_special_tokens=False) == ids[1:]
    assert tokenizer.vocab_size == 260
    assert tokenizer.eos_token_ids == (257,)


def test_a_long_text_is_not_cut(folder):
    assert len(Tokenizer.load(folder).encode("x" * 100)) == 101


def test_ids_beyond_the_vocabulary_have_no_text(folder):
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.decode([*tokenizer.encode("ab"), 99999]) == "ab"


def test_a_chat_has_its_special_tokens_once(folder):
    tokenizer = Tokenizer.load(folder)
    messages = [{"role": "user", "content": "hi"}]
    hi = tokenizer.encode("hi", add_special_tokens=False)
    assert tokenizer.chat_prompt(messages) == [256, 258, *hi, 259]
    assert tokenizer.chat_prompt(messages, add_generation_prompt=False) == [256, 258, *hi]


def test_template_arguments_reach_the_template(folder):
    tokenizer = Tokenizer.load(folder)
    prompt = tokenizer.chat_prompt([{"role": "user", "content": "hi"}], shout=True)
    assert tokenizer.decode(prompt) == "hi!"


@pytest.mark.parametrize(
    "messages, reason",
    [([{"role": "nobody", "content": "hi"}], "who is that"), ([{"content": "hi"}], "role")],
)
def test_messages_that_the_template_refuses(folder, messages, reason):
    source = json.loads((folder / "tokenizer_config.json").read_text())
    source["chat_template"] = TEMPLATE.replace("m.role", "m['role'].strip()")
    (folder / "tokenizer_config.json").write_text(json.dumps(source))
    with pytest.raises(ModelError, match=rf"cannot render these messages: .*{reason}"):
        Tokenizer.load(folder).chat_prompt(messages)


def test_a_model_without_a_template_cannot_chat(folder):
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ModelError, match="no chat template"):
        Tokenizer.load(folder).chat_prompt([{"role": "user", "content": "hi"}])


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match=f"tokenizer in {tmp_path}"):
        Tokenizer.load(tmp_path)


def test_code_that_comes_with_a_model_runs_only_when_trusted(folder, monkeypatch):
    copies = str(folder / "copies")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", copies)
    monkeypatch.syspath_prepend(copies)
    config = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ran = folder / "ran"
    (folder / "own.py").write_text(
        f"from transformers import PreTrainedTokenizerFast\n"
        f"open({str(ran)!r}, 'w').close()\n"
        f"class Own(PreTrainedTokenizerFast): pass\n"
    )
    # Refused or read without the code: either will do.
    with contextlib.suppress(ModelError):
        Tokenizer.load(folder)
    assert not ran.exists()
    assert Tokenizer.load(folder, trust_remote_code=True).vocab_size == 260
    assert ran.exists()


def test_transformers_is_not_imported_before_it_is_needed():
    code = (
        "import sys, sliceserve.models.text, sliceserve.models.resolve, sliceserve.models.decoder\n"
        "print({'transformers', 'huggingface_hub', 'gguf'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "set()\n", result.stderr
