"""Logprobs in OpenAI's two shapes."""

from collections.abc import Iterable

from sliceserve.api.replies import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from sliceserve.engine.generation import TextChunk
from sliceserve.models.tokenizer import Tokenizer
from sliceserve.scheduler.plan import Logprob, SampledToken

# JSON has no infinity; OpenAI sends this number for what is as good as impossible.
_LOWEST = -9999.0


def chat_logprobs(chunks: Iterable[TextChunk], tokenizer: Tokenizer) -> ChatLogprobs | None:
    """None when no logprobs were asked for."""
    content = []
    for token in _reported(chunks):
        chosen = _entry(Logprob(token.token_id, token.logprob or 0.0), tokenizer)
        top = [_entry(alternative, tokenizer) for alternative in token.top]
        content.append(TokenLogprob(chosen.token, chosen.logprob, chosen.bytes, top))
    return ChatLogprobs(content) if content else None


def completion_logprobs(
    chunks: Iterable[TextChunk], tokenizer: Tokenizer, num_before: int
) -> CompletionLogprobs | None:
    """None when no logprobs were asked for. ``num_before``: characters of the answer before."""
    lists = CompletionLogprobs([], [], [], [])
    for chunk in chunks:
        for token in _reported([chunk]):
            lists.tokens.append(_text(token.token_id, tokenizer))
            lists.token_logprobs.append(max(token.logprob or 0.0, _LOWEST))
            lists.top_logprobs.append(
                {_text(top.token_id, tokenizer): max(top.logprob, _LOWEST) for top in token.top}
            )
            lists.text_offset.append(num_before)
        num_before += len(chunk.text)
    return lists if lists.tokens else None


def _reported(chunks: Iterable[TextChunk]) -> list[SampledToken]:
    tokens = (chunk.token for chunk in chunks)
    return [token for token in tokens if token is not None and token.logprob is not None]


def _text(token_id: int, tokenizer: Tokenizer) -> str:
    return tokenizer.decode([token_id], skip_special_tokens=False)


def _entry(scored: Logprob, tokenizer: Tokenizer) -> TopLogprob:
    text = _text(scored.token_id, tokenizer)
    # The decoder's replacement character stands for a part of a character.
    raw = None if "\ufffd" in text else list(text.encode())
    return TopLogprob(text, max(scored.logprob, _LOWEST), raw)
