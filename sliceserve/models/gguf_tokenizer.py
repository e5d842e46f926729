"""The byte-level BPE tokenizer of a .gguf file as tokenizer.json and tokenizer_config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from sliceserve.models.errors import ModelError

# Values of tokenizer.ggml.token_type.
_CONTROL, _USER_DEFINED = 3, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scheme:
    """How text is cut into words before BPE, and what else differs between families.

    ``word`` is a pattern whose matches are words; None takes GPT-2's, with each digit alone.
    ``whole_words`` takes a word that is in the vocabulary as it is, without merging.
    """

    word: str | None = None
    nfc: bool = False
    whole_words: bool = False
    add_bos: bool = False


def _word_pattern(digits: str) -> str:
    """The pattern that Llama 3 and Qwen 2 published with their tokenizers; they differ in how
    many digits make a word."""
    return "|".join(
        [
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
            r"[^\r\n\p{L}\p{N}]?\p{L}+",
            digits,
            r" ?[^\s\p{L}\p{N}]+[\r\n]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        ]
    )


# By tokenizer.ggml.pre.
_SCHEMES = {
    "smollm": _Scheme(),
    "llama-bpe": _Scheme(word=_word_pattern(r"\p{N}{1,3}"), whole_words=True, add_bos=True),
    "qwen2": _Scheme(word=_word_pattern(r"\p{N}"), nfc=True),
}


def tokenizer_files(fields: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The text of tokenizer.json and the content of tokenizer_config.json.

    ``fields`` are those of the .gguf file whose names begin with "tokenizer". Raises ModelError
    for a tokenizer of another kind.
    """
    fields = {key.removeprefix("tokenizer.").removeprefix("ggml."): fields[key] for key in fields}
    if absent := [key for key in ("model", "pre", "tokens", "merges") if key not in fields]:
        raise ModelError(f"the .gguf file has no tokenizer.ggml.{absent[0]}")
    kind, pre, tokens = fields["model"], fields["pre"], fields["tokens"]
    if kind != "gpt2" or pre not in _SCHEMES:
        raise ModelError(
            f"the .gguf file's tokenizer ({kind}, {pre}) is not supported; supported: gpt2 with "
            f"{', '.join(_SCHEMES)}; use the model's safetensors and tokenizer.json instead"
        )
    tokenizer = _build(_SCHEMES[pre], fields)
    config = {
        # Reads tokenizer.json as it is; the families' own classes rebuild parts of it.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    for name, ggml_name in names.items():
        if (token_id := fields.get(f"{ggml_name}_token_id")) is not None:
            config[f"{name}_token"] = tokens[token_id]
    if "chat_template" in fields:
        config["chat_template"] = _chat_templates(fields)
    return tokenizer.to_str(), config


def _chat_templates(fields: Mapping[str, Any]) -> str | list[dict[str, str]]:
    """The chat template, or several by name, as tokenizer_config.json lists them."""
    prefix = "chat_template."
    named = {key.removeprefix(prefix): fields[key] for key in fields if key.startswith(prefix)}
    if not named:
        return fields["chat_template"]
    named["default"] = fields["chat_template"]
    return [{"name": name, "template": template} for name, template in named.items()]


def _build(scheme: _Scheme, fields: Mapping[str, Any]) -> Tokenizer:
    tokens = fields["tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["merges"]]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=scheme.whole_words))
    if scheme.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(scheme)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [
            AddedToken(token, special=token_type == _CONTROL, normalized=False)
            for token, token_type in zip(tokens, fields.get("token_type", ()), strict=False)
            if token_type in (_CONTROL, _USER_DEFINED)
        ]
    )
    if fields.get("add_bos_token", scheme.add_bos) and "bos_token_id" in fields:
        bos_id = fields["bos_token_id"]
        bos = tokens[bos_id]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", "$B"], special_tokens=[(bos, bos_id)]
        )
    return tokenizer


def _pre_tokenizer(scheme: _Scheme) -> pre_tokenizers.PreTokenizer:
    if scheme.word is None:
        cut = pre_tokenizers.Digits(individual_digits=True)
    else:
        cut = pre_tokenizers.Split(Regex(scheme.word), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=scheme.word is None)
    return pre_tokenizers.Sequence([cut, to_bytes])
