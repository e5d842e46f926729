"""Functions that a model may call, and whether it must."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from sliceserve.api.protocol.parts import Json, Part, Text, one_of

MAX_TOOLS = 128


def _expect_function(kind: str) -> str:
    if kind != "function":
        raise PydanticCustomError(
            "unsupported_parameter",
            "Tools of type '{kind}' are not supported; describe a function.",
            {"kind": kind},
        )
    return kind


def _expect_object(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type", "object") != "object":
        raise ValueError('the parameters of a function are a JSON Schema of type "object"')
    return schema


FunctionKind = Annotated[
    Text, AfterValidator(_expect_function), WithJsonSchema({"const": "function"})
]
Parameters = Annotated[
    Json,
    AfterValidator(_expect_object),
    WithJsonSchema({"type": "object", "properties": {"type": {"const": "object"}}}),
]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class FunctionDefinition(Part):
    """``parameters`` is a JSON Schema; without it the function has none. ``strict`` calls keep to
    it."""

    name: FunctionName
    description: Text | None = None
    parameters: Parameters | None = None
    strict: bool | None = None


class Tool(Part):
    type: FunctionKind
    function: FunctionDefinition


class FunctionReference(Part):
    name: FunctionName


class ToolReference(Part):
    type: FunctionKind
    function: FunctionReference


class AllowedTools(Part):
    mode: Literal["auto", "required"]
    tools: list[ToolReference] = Field(min_length=1)


class AllowedToolsChoice(Part):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Annotated[
    Literal["none", "auto", "required"] | ToolReference | AllowedToolsChoice,
    one_of(
        'none, auto, required, {"type": "function", "function": {"name": …}}, or {"type": '
        '"allowed_tools", "allowed_tools": {"mode": auto or required, "tools": […]}}'
    ),
]
