"""What the endpoints answer, whole or in chunks.

msgspec structs: one is encoded for each token of each stream, and UNSET says which fields a chunk
leaves out rather than sends as null.
"""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType
from starlette.responses import Response

from sliceserve.engine.messages import ProfileInfo


def as_json(reply: Struct) -> Response:
    """The whole answer to a request."""
    return Response(msgspec.json.encode(reply), media_type="application/json")


class PromptTokensDetails(Struct, frozen=True):
    cached_tokens: int


class Usage(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class RankedLogprob(Struct, frozen=True):
    """``rank`` 1 is the likeliest token of all."""

    logprob: float
    rank: int
    decoded_token: str


# For each token of a prompt it and the likeliest ones, by token id; of the first nothing is known.
PromptLogprobs = list[dict[int, RankedLogprob] | None]


class Reply(Struct, frozen=True, kw_only=True):
    """An answer, or a chunk of one. ``usage`` is null in all chunks but the last if it was asked
    for, and absent if not."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[Any]
    usage: Usage | UnsetType | None = UNSET


class CompletionLogprobs(Struct, frozen=True):
    """Lists run parallel, one entry a token. ``text_offset`` counts characters of the text. The
    first token of a prompt has no logprob."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Struct, frozen=True, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class TopLogprob(Struct, frozen=True):
    """``bytes`` is null for a token that holds a part of a character only."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True):
    content: list[TokenLogprob]
    refusal: None = None


class CalledFunction(Struct, frozen=True, kw_only=True):
    """``arguments`` is text, JSON if the model wrote it well; in chunks, a piece of it."""

    name: str | UnsetType = UNSET
    arguments: str


class ToolCall(Struct, frozen=True, kw_only=True):
    id: str
    type: str = "function"
    function: CalledFunction


class ToolCallDelta(Struct, frozen=True, kw_only=True):
    """A piece of the ``index``-th call. The first has all but arguments, the others those alone."""

    index: int
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: CalledFunction


class Message(Struct, frozen=True, kw_only=True):
    """``content`` is null where there are calls alone."""

    role: str = "assistant"
    content: str | None
    refusal: None = None
    annotations: list[Any] = []
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(Struct, frozen=True, kw_only=True):
    index: int
    message: Message
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None


class Delta(Struct, frozen=True, kw_only=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    refusal: UnsetType | None = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(Struct, frozen=True, kw_only=True):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None


class Completion(Reply, frozen=True, kw_only=True):
    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]


class ChatCompletion(Reply, frozen=True, kw_only=True):
    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class ChatCompletionChunk(Reply, frozen=True, kw_only=True):
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]


class ModelPermission(Struct, frozen=True, kw_only=True):
    """What OpenAI once said of each model; clients of that time still look for it."""

    id: str
    object: Literal["model_permission"] = "model_permission"
    created: int
    allow_create_engine: bool = False
    allow_sampling: bool = True
    allow_logprobs: bool = True
    allow_search_indices: bool = False
    allow_view: bool = True
    allow_fine_tuning: bool = False
    organization: str = "*"
    group: str | None = None
    is_blocking: bool = False


class ModelCard(Struct, frozen=True, kw_only=True):
    """OpenAI's description of a model, and what vLLM adds to it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "sliceserve"
    root: str
    parent: str | None = None
    max_model_len: int
    permission: list[ModelPermission]


class ModelList(Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class SplitInfo(Struct, frozen=True, kw_only=True):
    """What an engine offers to split clients. ``cuts`` are the layers at which rows may enter;
    ``thin``: they may also leave all layers to it. ``fingerprint`` is that of the weights."""

    model: str
    fingerprint: str
    protocol: int
    num_layers: int
    cuts: list[int]
    codecs: list[str]
    profiles: list[ProfileInfo]
    thin: bool
    max_model_len: int


class Tokenized(Struct, frozen=True, kw_only=True):
    """``max_model_len`` is the most tokens of prompt and answer together."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(Struct, frozen=True):
    prompt: str


class Version(Struct, frozen=True):
    version: str


class Health(Struct, frozen=True):
    """``message`` says what a dead engine died of."""

    status: Literal["ok", "draining", "dead"]
    message: str | UnsetType = UNSET


class ErrorDetail(Struct, frozen=True):
    """``code`` is for programs; ``param`` names the field at fault."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorReply(Struct, frozen=True):
    error: ErrorDetail
