"""Tokens to text, piece by piece, up to a stop string."""

from collections.abc import Sequence

from sliceserve.models.tokenizer import Tokenizer

# What a decoder shows for bytes that are not, or not yet, a character.
_REPLACEMENT = "\ufffd"


class TextStream:
    """Text of one request as its tokens come.

    The pieces that ``push`` and ``finish`` return add up to the decoded text of all tokens, cut
    before the stop string that is complete first (of those that end at the same character, the
    longest) or, with ``include_stop``, behind it. Stop strings are not looked for in the text of
    the first ``min_tokens`` tokens. With ``skip_special_tokens`` those have no text. ``stopped``
    says that a stop string was met: from then on pieces are empty. ``num_characters`` have been
    made of tokens so far, shown or not. Raises ValueError for an empty stop string.

    A token's text can depend on the tokens before it (a character in several tokens, a space that
    is dropped at the start), so each piece is the difference of two decoded windows: from the
    last piece but one to the last, and from there to the newest token. (`DecodeStream` of the
    tokenizers library does the same, but raises where a byte token changes what came before it.)
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        *,
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        min_tokens: int = 0,
    ) -> None:
        if not all(stop):
            raise ValueError("a stop string must not be empty")
        self.stopped = False
        self.num_characters = 0
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._skip_special_tokens = skip_special_tokens
        self._num_unstoppable = min_tokens
        # Tokens of the last two pieces at most, and how many of them are older than the last.
        self._window: list[int] = []
        self._num_shown = 0
        # Text that may be the beginning of a stop string.
        self._held = ""

    def push(self, token_id: int) -> str:
        """The text that can be shown now: all but what may yet become a stop string or a
        character."""
        if self.stopped:
            return ""
        self._window.append(token_id)
        self._num_unstoppable -= 1
        piece = self._new_text()
        if not piece or piece.endswith(_REPLACEMENT):
            return ""
        del self._window[: self._num_shown]
        self._num_shown = len(self._window)
        return self._show(piece)

    def finish(self) -> str:
        """What was held back; incomplete characters come as U+FFFD. Call it once, at the end."""
        if self.stopped:
            return ""
        text = self._show(self._new_text()) + self._held
        self._held = ""
        return text

    def _new_text(self) -> str:
        shown = self._decode(self._window[: self._num_shown])
        return self._decode(self._window)[len(shown) :]

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, self._skip_special_tokens)

    def _show(self, piece: str) -> str:
        """Pass text on, up to a stop string or to what may become one."""
        self.num_characters += len(piece)
        if self._num_unstoppable >= 0:
            return piece
        text = self._held + piece
        found = [(start + len(s), start) for s in self._stop if (start := text.find(s)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            end, start = min(found)
            return text[: end if self._include_stop else start]
        num_held = max((_overlap(text, s) for s in self._stop), default=0)
        shown = len(text) - num_held
        self._held = text[shown:]
        return text[:shown]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
