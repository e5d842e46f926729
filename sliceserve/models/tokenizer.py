"""Text to token ids and back, as the model's own tokenizer does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sliceserve.models.chat_template import named_template
from sliceserve.models.errors import ModelError
from sliceserve.models.spec import read_eos_token_ids

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import tokenizers
    from transformers import PreTrainedTokenizerFast


class Tokenizer:
    """A model's tokenizer and chat template. Safe to share between threads.

    ``eos_token_ids`` are the tokens that end an answer, from the model's configuration.
    ``backend`` is the Rust tokenizer underneath.
    """

    def __init__(
        self, pretrained: PreTrainedTokenizerFast, eos_token_ids: tuple[int, ...] = ()
    ) -> None:
        self.eos_token_ids = eos_token_ids
        self.backend: tokenizers.Tokenizer = pretrained.backend_tokenizer
        self._pretrained = pretrained
        # A tokenizer.json may carry the limits of training; a prompt is never cut in silence.
        self.backend.no_truncation()
        self.backend.no_padding()

    @classmethod
    def load(cls, path: Path, trust_remote_code: bool = False) -> Tokenizer:
        """Read the tokenizer in a model's folder. Raises ModelError if it has none that works.

        Code that comes with the model runs only with ``trust_remote_code``.
        """
        # Takes seconds, and most of the package does without it.
        from transformers import AutoTokenizer

        try:
            pretrained = AutoTokenizer.from_pretrained(
                path, trust_remote_code=trust_remote_code, local_files_only=True
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(f"cannot load the tokenizer in {path}: {error}") from error
        if getattr(pretrained, "backend_tokenizer", None) is None:
            raise ModelError(
                f"the tokenizer in {path} is a {type(pretrained).__name__} without a "
                "tokenizer.json; convert it to one with transformers' save_pretrained"
            )
        return cls(pretrained, read_eos_token_ids(path))

    @property
    def vocab_size(self) -> int:
        """Tokens that have text, added ones included; the model's table may be padded beyond."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of tokens; ids that the vocabulary does not have are left out."""
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Tokens as the vocabulary spells them, in which a space may be another character; ids that
        it does not have are empty."""
        return [self.backend.id_to_token(i) or "" for i in ids]

    def describe(self) -> dict[str, Any]:
        """What tokenizer_config.json says: its class, its special tokens, its chat template."""
        config = {
            name: value
            for name, value in self._pretrained.init_kwargs.items()
            # Paths are this machine's own business, and objects have no name in JSON.
            if not name.endswith(("_file", "_path")) and _is_plain(value)
        }
        special = {name: str(token) for name, token in self._pretrained.special_tokens_map.items()}
        return {
            **config,
            **special,
            "tokenizer_class": type(self._pretrained).__name__,
            "chat_template": self._pretrained.chat_template,
        }

    def chat_template(self, with_tools: bool = False) -> str:
        """The source of the template for a conversation, in which tools can be called or not.
        Raises ModelError if there is none."""
        source = named_template(self._pretrained.chat_template, with_tools)
        if source is None:
            raise ModelError(
                "this model has no chat template: it completes text; send a prompt instead of "
                "messages, take its instruction-tuned variant, or give a template with "
                "--chat-template"
            )
        return source

    def chat_prompt(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool = True,
        add_special_tokens: bool = False,
        chat_template: str | None = None,
        **template_kwargs: Any,
    ) -> list[int]:
        """Token ids of a conversation, as the chat template writes it: the model's own, or
        ``chat_template``.

        ``messages`` have "role" and "content"; ``template_kwargs`` (``tools``, ``enable_thinking``,
        …) go to the template. ``add_special_tokens`` adds to the special tokens that the template
        writes those of ``encode``. Raises ModelError if there is no template, or it refuses.
        """
        source = chat_template or self.chat_template(bool(template_kwargs.get("tools")))
        try:
            text = self._pretrained.apply_chat_template(
                messages,
                tokenize=False,
                chat_template=source,
                add_generation_prompt=add_generation_prompt,
                **template_kwargs,
            )
        # A template is a program, in a sandbox: it may fail in any way.
        except Exception as error:
            raise ModelError(f"the chat template cannot render these messages: {error}") from error
        return self.encode(text, add_special_tokens)

    def special_ids(self, names: Iterable[str]) -> dict[str, int]:
        """The ids of those of ``names`` that are special tokens."""
        special = self.backend.get_added_tokens_decoder().items()
        ids = {token.content: i for i, token in special if token.special}
        return {name: ids[name] for name in names if name in ids}


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
