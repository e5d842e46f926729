"""What /v1/responses answers: a response, and the events of one that is streamed.

Every field of OpenAI's that says how the answer was made is there, null where it does not apply.
"""

from typing import Any, Literal

from msgspec import Struct

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class ResponseTopLogprob(Struct, frozen=True):
    """``bytes`` is empty for a token that holds a part of a character only."""

    token: str
    logprob: float
    bytes: list[int]


class ResponseLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[ResponseTopLogprob]


class OutputText(Struct, frozen=True, kw_only=True, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Any] = []
    logprobs: list[ResponseLogprob] = []


class OutputMessage(Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    id: str
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText] = []


class FunctionCall(Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    """``arguments`` is JSON text, as the model wrote it."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus


OutputItem = OutputMessage | FunctionCall


class InputTokensDetails(Struct, frozen=True):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct, frozen=True):
    reasoning_tokens: int = 0


class ResponseUsage(Struct, frozen=True, kw_only=True):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int


class ResponseError(Struct, frozen=True):
    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class IncompleteDetails(Struct, frozen=True):
    reason: Literal["max_output_tokens"]


class ReasoningEcho(Struct, frozen=True):
    effort: str | None = None
    summary: str | None = None


class TextEcho(Struct, frozen=True):
    format: dict[str, Any]
    verbosity: str = "medium"


class ResponseReply(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str
    output: list[OutputItem] = []
    usage: ResponseUsage | None = None
    background: bool = False
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None = None
    prompt_cache_key: str | None
    reasoning: ReasoningEcho = ReasoningEcho()
    safety_identifier: str | None
    service_tier: Literal["default"] = "default"
    store: bool = False
    temperature: float
    text: TextEcho
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    user: str | None


class Event(Struct, frozen=True, kw_only=True, tag_field="type"):
    """Events are numbered from 0 when they are sent."""

    sequence_number: int = 0


class ResponseEvent(Event, frozen=True, kw_only=True):
    response: ResponseReply


class Created(ResponseEvent, frozen=True, tag="response.created"):
    pass


class InProgress(ResponseEvent, frozen=True, tag="response.in_progress"):
    pass


class Completed(ResponseEvent, frozen=True, tag="response.completed"):
    pass


class Incomplete(ResponseEvent, frozen=True, tag="response.incomplete"):
    pass


class Failed(ResponseEvent, frozen=True, tag="response.failed"):
    pass


class ItemEvent(Event, frozen=True, kw_only=True):
    output_index: int
    item: OutputItem


class ItemAdded(ItemEvent, frozen=True, tag="response.output_item.added"):
    pass


class ItemDone(ItemEvent, frozen=True, tag="response.output_item.done"):
    pass


class PartEvent(Event, frozen=True, kw_only=True):
    item_id: str
    output_index: int
    content_index: int = 0


class PartAdded(PartEvent, frozen=True, kw_only=True, tag="response.content_part.added"):
    part: OutputText


class PartDone(PartEvent, frozen=True, kw_only=True, tag="response.content_part.done"):
    part: OutputText


class TextDelta(PartEvent, frozen=True, kw_only=True, tag="response.output_text.delta"):
    delta: str
    logprobs: list[ResponseLogprob] = []


class TextDone(PartEvent, frozen=True, kw_only=True, tag="response.output_text.done"):
    text: str
    logprobs: list[ResponseLogprob] = []


class ArgumentsEvent(Event, frozen=True, kw_only=True):
    item_id: str
    output_index: int


class ArgumentsDelta(
    ArgumentsEvent, frozen=True, kw_only=True, tag="response.function_call_arguments.delta"
):
    delta: str


class ArgumentsDone(
    ArgumentsEvent, frozen=True, kw_only=True, tag="response.function_call_arguments.done"
):
    arguments: str


EVENTS = (
    Created,
    InProgress,
    ItemAdded,
    PartAdded,
    TextDelta,
    TextDone,
    PartDone,
    ArgumentsDelta,
    ArgumentsDone,
    ItemDone,
    Completed,
    Incomplete,
    Failed,
)
