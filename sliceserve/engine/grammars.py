"""Compiled grammars, ready to be followed by requests."""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sliceserve.guides import GuideError, limits, load_llguidance, one_line
from sliceserve.models.errors import ModelError
from sliceserve.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers
    from llguidance import LLMatcher, LLTokenizer

# Most programs have few, of some 100 kB each.
_MAX_KEPT = 64


@dataclass(frozen=True, slots=True)
class Grammar:
    """A matcher at the beginning of a grammar, to be copied. Its masks are for the tokens below
    ``vocab_size``, at least as many as the model has logits for."""

    matcher: "LLMatcher"
    vocab_size: int


class Grammars:
    """Grammars over the tokens of the model in the folder ``path``, whose logits are ``vocab_size``
    wide.

    They are compiled one after the other in a thread of their own, for large ones would hold up
    the engine, and the latest are kept. What this takes is loaded with the first: an engine that is
    never asked for a guide does without llguidance and another copy of the vocabulary (some 50 MB
    for 49k tokens). That once, all threads wait for about half a second.
    """

    def __init__(self, path: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._path = path
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._tokenizer: LLTokenizer | None = None
        self._kept: OrderedDict[str, Future[Grammar]] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "sliceserve-grammars")

    def compile(self, guide: str) -> Future[Grammar]:
        """The grammar of ``guide``, in time; GuideError where it cannot be followed."""
        compiled = self._kept.get(guide)
        if compiled is None:
            compiled = self._kept[guide] = self._thread.submit(self._compile, guide)
        self._kept.move_to_end(guide)
        if len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
        return compiled

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _compile(self, guide: str) -> Grammar:
        llguidance = load_llguidance()
        if self._tokenizer is None:
            self._tokenizer = self._load_tokenizer()
        matcher: LLMatcher = llguidance.LLMatcher(
            self._tokenizer, guide, log_level=0, limits=limits()
        )
        if not matcher.is_error():
            # The first mask takes the longest, and may take too much.
            matcher.compute_bitmask()
        if matcher.is_error():
            raise GuideError(f"the guide cannot be followed: {one_line(matcher.get_error())}")
        return Grammar(matcher, self._tokenizer.vocab_size)

    def _load_tokenizer(self) -> "LLTokenizer":
        if not self._eos_token_ids:
            raise GuideError("this model has no end token, so a guided answer could not end")
        backend = self._load_backend()
        # Most models have logits for more tokens than there are; a few for less.
        num_tokens = max(self._vocab_size, 1 + max(backend.get_vocab().values()))
        try:
            return load_llguidance().LLTokenizer(
                backend.to_str(), n_vocab=num_tokens, eos_token=self._eos_token_ids
            )
        except ValueError as error:
            raise GuideError(f"llguidance cannot use this model's tokenizer: {error}") from error

    def _load_backend(self) -> "tokenizers.Tokenizer":
        path = self._path / "tokenizer.json"
        if path.exists():
            # Without transformers, whose import takes seconds.
            import tokenizers

            return tokenizers.Tokenizer.from_file(str(path))
        try:
            return Tokenizer.load(self._path).backend
        except ModelError as error:
            raise GuideError(f"guided answers need the model's tokenizer: {error}") from error
