"""POST /tokenize and /detokenize, as vLLM has them."""

import asyncio
from collections.abc import Sequence

from fastapi import Request
from starlette.responses import Response

from sliceserve.api.backend import Backend
from sliceserve.api.conversation import render
from sliceserve.api.errors import invalid
from sliceserve.api.gate import account_of
from sliceserve.api.protocol import DetokenizeRequest, TokenizeRequest
from sliceserve.api.replies import Detokenized, Tokenized, as_json
from sliceserve.models.tokenizer import Tokenizer


async def tokenize(http: Request, request: TokenizeRequest, backend: Backend) -> Response:
    """Token ids of a text or a chat. Raises ApiError."""
    _expect_model(http, request.model, backend)
    tokenizer = backend.tokenizer
    tokens = await asyncio.to_thread(_token_ids, request, backend)
    return as_json(
        Tokenized(
            count=len(tokens),
            max_model_len=backend.max_model_len,
            tokens=tokens,
            token_strs=tokenizer.token_strings(tokens) if request.return_token_strs else None,
        )
    )


async def detokenize(http: Request, request: DetokenizeRequest, backend: Backend) -> Response:
    """Text of tokens, special ones included. Raises ApiError."""
    _expect_model(http, request.model, backend)
    expect_known(request.tokens, backend.tokenizer, "tokens")
    text = await asyncio.to_thread(backend.tokenizer.decode, request.tokens, False)
    return as_json(Detokenized(text))


def expect_known(ids: Sequence[int], tokenizer: Tokenizer, param: str) -> None:
    """Raise ApiError for a token id that the vocabulary does not have."""
    unknown = next((i for i in ids if i >= tokenizer.vocab_size), None)
    if unknown is not None:
        raise invalid(
            f"token id {unknown} is outside the vocabulary of {tokenizer.vocab_size}", param
        )


def _expect_model(http: Request, name: str | None, backend: Backend) -> None:
    # Unlike in OpenAI's own endpoints, it may be left out.
    if name is not None:
        backend.expect_model(name)
        account_of(http).expect_model(name)


def _token_ids(request: TokenizeRequest, backend: Backend) -> list[int]:
    if request.messages is None:
        return backend.tokenizer.encode(
            request.prompt or "", request.add_special_tokens is not False
        )
    return render(request.messages, request, backend)
