"""What /v1/responses accepts.

Nothing is stored here: a request carries the whole conversation, and what names a stored one is
refused. ``metadata``, ``safety_identifier`` and ``prompt_cache_key`` are labels for the caller's
own use. ``include`` names details of items that the answer may have; those of items that this
server never makes add nothing. What `GenerationRequest` has and OpenAI's endpoint has not (seed,
stop, top_k, …) works as it does elsewhere.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from sliceserve.api.protocol.generation import GenerationRequest
from sliceserve.api.protocol.parts import Part, Text, neutral, one_of
from sliceserve.configs.sampling import MAX_LOGPROBS

ItemStatus = Literal["in_progress", "completed", "incomplete"]
Include = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]


class InputText(Part):
    """A part of a message. The fields after ``text`` come back when a client sends an answer of the
    API again as a part of the conversation."""

    type: Literal["input_text", "output_text"]
    text: Text

    annotations: Annotated[list[Any] | None, neutral([])] = None
    logprobs: list[Any] | None = None
    parsed: Any = None


TextParts = Annotated[
    Text | list[InputText],
    one_of('a string, or a list of parts {"type": "input_text", "text": string}'),
]


def text_of(content: str | list[InputText]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


class MessageItem(Part):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: TextParts
    id: Text | None = None
    status: ItemStatus | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class FunctionCallItem(Part):
    """A call that the model has made. ``arguments`` is JSON text."""

    type: Literal["function_call"]
    call_id: Text
    name: Text
    arguments: Text
    id: Text | None = None
    status: ItemStatus | None = None


class FunctionOutputItem(Part):
    """What the function answered."""

    type: Literal["function_call_output"]
    call_id: Text
    output: TextParts
    id: Text | None = None
    status: ItemStatus | None = None


def _branch(item: Any) -> str:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", "")
    return f"<{kind}>"


# Tags in angle brackets are no part of a field's path in errors.
InputItem = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[FunctionOutputItem, Tag("<function_call_output>")],
    Discriminator(
        _branch,
        custom_error_type="unsupported_item",
        custom_error_message=(
            "expected an item of type message, function_call or function_call_output"
        ),
    ),
]


def _as_items(given: Any) -> Any:
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


class Reasoning(Part):
    """Accepted as far as it asks for none: the answer is all that the model says."""

    effort: Annotated[str | None, neutral("none")] = None
    summary: Annotated[str | None, neutral()] = None
    generate_summary: Annotated[str | None, neutral()] = None


class TextFormat(Part):
    type: Annotated[str, neutral("text")] = "text"


class TextConfig(Part):
    format: TextFormat | None = None
    verbosity: Annotated[str | None, neutral("medium")] = None


class ObfuscationOptions(Part):
    include_obfuscation: Annotated[bool | None, neutral(False)] = None

    @property
    def include_usage(self) -> bool:
        # It stands in the last event, whether asked for or not.
        return False


class ResponsesRequest(GenerationRequest):
    """Body of POST /v1/responses."""

    input: Annotated[
        Annotated[list[InputItem], Field(min_length=1)],
        BeforeValidator(_as_items, json_schema_input_type=Text | list[InputItem]),
    ]
    instructions: Text | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    include: list[Include] | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    stream_options: ObfuscationOptions | None = None  # type: ignore[assignment]
    tools: Annotated[list[Any] | None, neutral([])] = None
    tool_choice: Annotated[Any, neutral("none", "auto")] = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = Field(None, ge=1)
    metadata: dict[str, str] | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None

    background: Annotated[bool | None, neutral(False)] = None
    conversation: Annotated[Any, neutral()] = None
    previous_response_id: Annotated[str | None, neutral()] = None
    prompt: Annotated[Any, neutral()] = None
    service_tier: Annotated[str | None, neutral("auto", "default")] = None
    store: Annotated[bool | None, neutral(False)] = None
    truncation: Annotated[str | None, neutral("disabled")] = None
    max_tokens: Annotated[int | None, neutral()] = None
    n: Annotated[int | None, neutral(1)] = None

    @model_validator(mode="after")
    def _expect_logprobs(self) -> "ResponsesRequest":
        if self.top_logprobs and not self.wants_logprobs:
            raise ValueError("top_logprobs needs message.output_text.logprobs in include")
        return self

    @property
    def wants_logprobs(self) -> bool:
        return "message.output_text.logprobs" in (self.include or ())

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_output_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.wants_logprobs else None
