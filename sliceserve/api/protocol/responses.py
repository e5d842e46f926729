"""What /v1/responses accepts.

Nothing is stored here: a request carries the whole conversation, and what names a stored one is
refused. ``metadata``, ``safety_identifier`` and ``prompt_cache_key`` are labels for the caller's
own use. ``include`` names details of items that the answer may have; those of items that this
server never makes add nothing. What `GenerationRequest` has and OpenAI's endpoint has not (seed,
stop, top_k, …) works as it does elsewhere.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from sliceserve import guides
from sliceserve.api.protocol.generation import GenerationRequest
from sliceserve.api.protocol.parts import Json, Part, Text, needs, neutral, one_of, together
from sliceserve.api.protocol.structured import GuideMaker
from sliceserve.api.protocol.tools import (
    MAX_TOOLS,
    AllowedTools,
    AllowedToolsChoice,
    FunctionDefinition,
    FunctionKind,
    FunctionName,
    FunctionReference,
    Parameters,
    Tool,
    ToolReference,
)
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
    """``name``, ``schema`` and what follows belong to the type json_schema. Keywords that cannot be
    enforced are refused with ``strict``, and ignored without."""

    RULES = (
        {
            "anyOf": [
                together(
                    type={"const": "json_schema"},
                    name={"type": "string"},
                    schema={"type": "object"},
                ),
                {
                    "properties": {
                        "type": {"enum": ["text", "json_object"]},
                        "name": {"type": "null"},
                        "schema": {"type": "null"},
                    }
                },
            ]
        },
    )

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Annotated[Text, Field(min_length=1)] | None = None
    schema_: Json | None = Field(None, alias="schema")
    description: Text | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _expect_schema(self) -> "TextFormat":
        has_schema = self.type == "json_schema"
        if any((given is not None) != has_schema for given in (self.name, self.schema_)):
            raise ValueError("name and schema belong to the type json_schema, which needs both")
        return self

    def guide(self) -> str:
        """That of JSON: text is free."""
        if self.schema_ is None:
            return guides.json_object()
        return guides.json_schema(self.schema_, lenient=not self.strict)


class TextConfig(Part):
    format: TextFormat | None = None
    verbosity: Annotated[str | None, neutral("medium")] = None


class ObfuscationOptions(Part):
    include_obfuscation: Annotated[bool | None, neutral(False)] = None

    @property
    def include_usage(self) -> bool:
        # It stands in the last event, whether asked for or not.
        return False


class FunctionTool(Part):
    """As in chats, but flat."""

    type: FunctionKind
    name: FunctionName
    description: Text | None = None
    parameters: Parameters | None = None
    strict: bool | None = None

    @property
    def of_chat(self) -> Tool:
        fields = self.model_dump(exclude={"type"}, exclude_none=True)
        return Tool(type="function", function=FunctionDefinition(**fields))


class FunctionChoice(Part):
    type: FunctionKind
    name: FunctionName

    @property
    def of_chat(self) -> ToolReference:
        return ToolReference(type="function", function=FunctionReference(name=self.name))


class AllowedFunctions(Part):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[FunctionChoice] = Field(min_length=1)

    @property
    def of_chat(self) -> AllowedToolsChoice:
        allowed = AllowedTools(mode=self.mode, tools=[tool.of_chat for tool in self.tools])
        return AllowedToolsChoice(type="allowed_tools", allowed_tools=allowed)


FunctionsChoice = Annotated[
    Literal["none", "auto", "required"] | FunctionChoice | AllowedFunctions,
    one_of(
        'none, auto, required, {"type": "function", "name": …}, or {"type": "allowed_tools", '
        '"mode": auto or required, "tools": […]}'
    ),
]


class ResponsesRequest(GenerationRequest):
    """Body of POST /v1/responses."""

    RULES = (
        needs(
            "top_logprobs",
            [None, 0],
            include={"type": "array", "contains": {"const": "message.output_text.logprobs"}},
        ),
    )

    input: Annotated[
        Annotated[list[InputItem], Field(min_length=1)],
        BeforeValidator(
            _as_items,
            json_schema_input_type=Text | Annotated[list[InputItem], Field(min_length=1)],
        ),
    ]
    instructions: Text | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    include: list[Include] | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    stream_options: ObfuscationOptions | None = None  # type: ignore[assignment]
    tools: list[FunctionTool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: FunctionsChoice | None = None
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
    def guide_makers(self) -> dict[str, GuideMaker]:
        makers = super().guide_makers
        form = self.text.format if self.text is not None else None
        if form is not None and form.type != "text":
            makers["text.format"] = form.guide
        return makers

    @property
    def wants_logprobs(self) -> bool:
        return "message.output_text.logprobs" in (self.include or ())

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_output_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.wants_logprobs else None
