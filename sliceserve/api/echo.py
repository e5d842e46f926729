"""The prompt as `echo` tells it: its text, and where in it each token begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from sliceserve.models.text import TextStream
from sliceserve.models.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Echo:
    """``offsets[i]`` counts the characters of ``text`` before token i."""

    text: str
    token_ids: Sequence[int]
    offsets: Sequence[int]


def echo_text(text: str, tokenizer: Tokenizer, add_special_tokens: bool) -> Echo:
    """Of a prompt that came as text, which is told as it came: what the tokenizer adds takes no
    room."""
    encoding = tokenizer.backend.encode(text, add_special_tokens=add_special_tokens)
    # A token that was added has place 0, wherever it stands.
    offsets = accumulate((start for start, _ in encoding.offsets), max)
    return Echo(text, encoding.ids, list(offsets))


def echo_ids(token_ids: Sequence[int], tokenizer: Tokenizer) -> Echo:
    """Of a prompt that came as token ids: all have text, special ones too."""
    stream = TextStream(tokenizer, skip_special_tokens=False)
    pieces, offsets = [], []
    for token_id in token_ids:
        offsets.append(stream.num_characters)
        pieces.append(stream.push(token_id))
    return Echo("".join([*pieces, stream.finish()]), token_ids, offsets)
