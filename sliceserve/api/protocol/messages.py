"""Turns of a conversation, as /v1/chat/completions knows them."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from sliceserve.api.protocol.parts import Part, Text, missing, needs, neutral, together


def _expect_text_kind(kind: str) -> str:
    if kind not in ("text", "refusal"):
        raise PydanticCustomError(
            "unsupported_parameter",
            "Content parts of type '{kind}' are not supported: this model reads text.",
            {"kind": kind},
        )
    return kind


class ContentPart(Part):
    RULES = (
        {
            "anyOf": [
                {
                    "properties": {"type": {"const": kind}, kind: {"type": "string"}},
                    "required": [kind],
                }
                for kind in ("text", "refusal")
            ]
        },
    )

    type: Annotated[
        Text, AfterValidator(_expect_text_kind), WithJsonSchema({"enum": ["text", "refusal"]})
    ]
    text: Text | None = None
    refusal: Text | None = None

    @model_validator(mode="after")
    def _expect_its_text(self) -> "ContentPart":
        if getattr(self, self.type) is None:
            raise missing(self.type)
        return self


_PARTS = TypeAdapter(list[ContentPart])


def _text_or_parts(value: Any, handler: Any) -> Any:
    """A union's errors name its branches; these name the part at fault."""
    if isinstance(value, list):
        return _PARTS.validate_python(value)
    try:
        return handler(value)
    except ValidationError as error:
        if isinstance(value, str):
            raise
        sentence = 'expected a string, or a list of parts {"type": "text", "text": string}'
        raise PydanticCustomError("content_type", sentence) from error


class CalledFunction(Part):
    """``arguments`` is JSON, if the model wrote it well."""

    name: Text
    arguments: Text


class ToolCall(Part):
    """A call that the model has made. ``index`` comes from clients that put it together from
    chunks."""

    id: Text | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


_ASSISTANT = {"const": "assistant"}


class ChatMessage(Part):
    """One turn. The fields after ``tool_calls`` come back when a client sends an answer of the
    API again as a part of the conversation."""

    RULES = (
        {
            "anyOf": [
                {"properties": {"content": {"not": {"type": "null"}}}, "required": ["content"]},
                together(role=_ASSISTANT, tool_calls={"type": "array", "minItems": 1}),
                together(role=_ASSISTANT, refusal={"type": "string"}),
            ]
        },
        needs("tool_calls", [None, []], role=_ASSISTANT),
    )

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[Text | list[ContentPart] | None, WrapValidator(_text_or_parts)] = None
    name: Text | None = None
    tool_call_id: Text | None = None
    tool_calls: list[ToolCall] | None = None

    refusal: Text | None = None
    reasoning_content: Text | None = None
    function_call: Annotated[Any, neutral()] = None
    annotations: Annotated[list[Any] | None, neutral([])] = None
    audio: Annotated[Any, neutral()] = None

    @model_validator(mode="after")
    def _expect_content(self) -> "ChatMessage":
        if self.content is None and not (
            self.role == "assistant" and (self.tool_calls or self.refusal is not None)
        ):
            raise missing("content")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"a message of the {self.role} has no tool_calls")
        return self

    @property
    def text(self) -> str | None:
        """The content in one piece; what an assistant would not say counts as said."""
        if isinstance(self.content, list):
            return "\n".join(part.text or part.refusal or "" for part in self.content)
        return self.refusal if self.content is None else self.content
