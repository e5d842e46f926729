"""Logprobs in the shapes of OpenAI, and of a prompt in vLLM's."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from sliceserve.api.echo import Echo
from sliceserve.api.replies import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprobs,
    RankedLogprob,
    TokenLogprob,
    TopLogprob,
)
from sliceserve.engine.generation import TextChunk
from sliceserve.models.tokenizer import Tokenizer
from sliceserve.scheduler.plan import Logprob, PromptLogprob, SampledToken

# JSON has no infinity; OpenAI sends this number for what is as good as impossible.
_LOWEST = -9999.0


class TokenNames:
    """How tokens are written among logprobs: as their text, or as "token_id:" and the number."""

    def __init__(self, tokenizer: Tokenizer, as_ids: bool = False) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    def __getitem__(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._as_ids else _text(token_id, self._tokenizer)


def chat_logprobs(
    chunks: Iterable[TextChunk], tokenizer: Tokenizer, as_ids: bool = False
) -> ChatLogprobs | None:
    """None when no logprobs were asked for."""
    names = TokenNames(tokenizer, as_ids)
    content = []
    for chunk in chunks:
        if (token := _reported(chunk)) is None:
            continue
        chosen = _entry(Logprob(token.token_id, token.logprob or 0.0), names)
        top = [_entry(alternative, names) for alternative in token.top]
        content.append(TokenLogprob(chosen.token, chosen.logprob, chosen.bytes, top))
    return ChatLogprobs(content) if content else None


class _Scored(NamedTuple):
    """A token of a text, and where in the text it begins."""

    token_id: int
    logprob: float | None
    top: Sequence[Logprob]
    offset: int


def completion_logprobs(
    echo: Echo | None, chunks: Sequence[TextChunk], num_before: int, num_top: int, names: TokenNames
) -> CompletionLogprobs:
    """Of ``chunks``, before which the text has ``num_before`` characters of the prompt; and of the
    prompt, if it is told with them. ``num_top`` alternatives each."""
    lists = CompletionLogprobs([], [], [], [])
    tokens = [*_of_prompt(echo, chunks), *_of_answer(chunks, num_before)]
    for token_id, logprob, top, offset in tokens:
        lists.tokens.append(names[token_id])
        lists.text_offset.append(offset)
        if logprob is None:
            lists.token_logprobs.append(None)
            lists.top_logprobs.append(None)
            continue
        best: dict[str, float] = {}
        # The token itself is always there. Of two with one text the likelier stays, which is first.
        for other in (*top[:num_top], Logprob(token_id, logprob)):
            best.setdefault(names[other.token_id], max(other.logprob, _LOWEST))
        lists.token_logprobs.append(max(logprob, _LOWEST))
        lists.top_logprobs.append(best)
    return lists


def _of_prompt(echo: Echo | None, chunks: Sequence[TextChunk]) -> Iterator[_Scored]:
    if echo is not None:
        # Nothing stands before the first.
        yield _Scored(echo.token_ids[0], None, (), 0)
        for score, offset in zip(chunks[0].prompt_logprobs, echo.offsets[1:], strict=True):
            yield _Scored(score.token_id, score.logprob, score.top, offset)


def _of_answer(chunks: Iterable[TextChunk], num_before: int) -> Iterator[_Scored]:
    for chunk in chunks:
        if (token := _reported(chunk)) is not None:
            yield _Scored(token.token_id, token.logprob, token.top, num_before + chunk.offset)


def prompt_logprobs(
    scores: Iterable[PromptLogprob], num_top: int, tokenizer: Tokenizer
) -> PromptLogprobs:
    """Of all tokens of a prompt, by token id: the token itself, then ``num_top`` alternatives."""
    told: PromptLogprobs = [None]
    for score in scores:
        entries = {score.token_id: _ranked(score, score.rank, tokenizer)}
        for rank, other in enumerate(score.top[:num_top], start=1):
            entries.setdefault(other.token_id, _ranked(other, rank, tokenizer))
        told.append(entries)
    return told


def _ranked(scored: Logprob | PromptLogprob, rank: int, tokenizer: Tokenizer) -> RankedLogprob:
    text = _text(scored.token_id, tokenizer)
    return RankedLogprob(max(scored.logprob, _LOWEST), rank, text)


def _reported(chunk: TextChunk) -> SampledToken | None:
    token = chunk.token
    return token if token is not None and token.logprob is not None else None


# A vocabulary's worth: the same few are named again and again.
@lru_cache(maxsize=1 << 17)
def _text(token_id: int, tokenizer: Tokenizer) -> str:
    return tokenizer.decode([token_id], skip_special_tokens=False)


def _entry(scored: Logprob, names: TokenNames) -> TopLogprob:
    name = names[scored.token_id]
    # The decoder's replacement character stands for a part of a character.
    raw = None if "\ufffd" in name else list(name.encode())
    return TopLogprob(name, max(scored.logprob, _LOWEST), raw)
