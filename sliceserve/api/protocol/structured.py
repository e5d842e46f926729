"""What a request may say of the form of its answers: OpenAI's ``response_format``, and vLLM's
``structured_outputs`` with the older ``guided_*``."""

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sliceserve import guides
from sliceserve.api.protocol.parts import Part, Text, neutral, one_of, together
from sliceserve.guides import GuideError

# Makes a guide; raises GuideError.
GuideMaker = Callable[[], str]

SchemaOrText = Annotated[
    dict[str, Any] | Text, one_of("a JSON schema, as an object or as the text of one")
]
Choices = Annotated[list[Text], Field(min_length=1)]


class JsonSchema(Part):
    """A schema and what to call it. Keywords that cannot be enforced are refused with ``strict``,
    and ignored without."""

    name: Annotated[Text, Field(min_length=1)]
    description: Text | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    def guide(self) -> str:
        if self.schema_ is None:
            return guides.json_object()
        return guides.json_schema(self.schema_, lenient=not self.strict)


class ResponseFormat(Part):
    RULES = (
        {
            "anyOf": [
                together(type={"const": "json_schema"}, json_schema={"type": "object"}),
                {
                    "properties": {
                        "type": {"enum": ["text", "json_object"]},
                        "json_schema": {"type": "null"},
                    }
                },
            ]
        },
    )

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _expect_schema(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema, which needs it")
        return self

    def guide(self) -> str:
        """That of JSON: text is free."""
        return guides.json_object() if self.json_schema is None else self.json_schema.guide()


class StructuredOutputs(Part):
    """One way to hold answers to a form. White space in JSON can be chosen besides; there is no
    other backend to fall back to."""

    RULES = (
        {
            "oneOf": [
                together(json_object={"const": True}),
                *(
                    together(**{field: {"not": {"type": "null"}}})
                    for field in ("json", "regex", "choice", "grammar")
                ),
            ]
        },
    )

    json_: SchemaOrText | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: Text | None = None
    choice: Choices | None = None
    grammar: Text | None = None
    structural_tag: Annotated[Any, neutral()] = None

    whitespace_pattern: Text | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: Annotated[bool, neutral(False)] = False
    disable_fallback: bool = False

    @model_validator(mode="after")
    def _expect_one(self) -> "StructuredOutputs":
        given = (self.json_, self.regex, self.choice, self.grammar, self.json_object or None)
        if sum(value is not None for value in given) != 1:
            raise ValueError("expected one of json, json_object, regex, choice and grammar")
        return self

    def guide(self) -> str:
        if self.json_ is not None:
            return self._json_guide(self.json_)
        if self.regex is not None:
            return guides.regex(self.regex)
        if self.choice is not None:
            return guides.choice(self.choice)
        if self.grammar is not None:
            return guides.grammar(self.grammar)
        return self._json_guide({"type": "object"})

    def _json_guide(self, schema: dict[str, Any] | str) -> str:
        if isinstance(schema, str):
            schema = _parse(schema)
        options: dict[str, Any] = {}
        if self.whitespace_pattern is not None:
            options = {"whitespace_pattern": self.whitespace_pattern}
        elif self.disable_any_whitespace:
            options = {"whitespace_pattern": None, "whitespace_flexible": False}
        return guides.json_schema({"x-guidance": options, **schema})


class GuidedRequest(Part):
    """What of this all generating endpoints share."""

    structured_outputs: StructuredOutputs | None = None
    guided_json: SchemaOrText | None = None
    guided_regex: Text | None = None
    guided_choice: Choices | None = None
    guided_grammar: Text | None = None
    guided_whitespace_pattern: Text | None = None

    @property
    def guide_makers(self) -> dict[str, GuideMaker]:
        """What the answers shall be held to, by the names of the parameters that say so."""
        makers: dict[str, GuideMaker] = {}
        if self.structured_outputs is not None:
            makers["structured_outputs"] = self.structured_outputs.guide
        for name in ("json", "regex", "choice", "grammar"):
            if (value := getattr(self, f"guided_{name}")) is not None:
                whitespace = self.guided_whitespace_pattern
                same = StructuredOutputs(**{name: value}, whitespace_pattern=whitespace)
                makers[f"guided_{name}"] = same.guide
        return makers


class FormattedRequest(GuidedRequest):
    """Where vLLM takes OpenAI's ``response_format``: chats and completions."""

    response_format: ResponseFormat | None = None

    @property
    def guide_makers(self) -> dict[str, GuideMaker]:
        makers = super().guide_makers
        if self.response_format is not None and self.response_format.type != "text":
            makers["response_format"] = self.response_format.guide
        return makers


def _parse(text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GuideError(f"the schema is not valid JSON: {error}") from error
    if not isinstance(schema, dict):
        raise GuideError("the schema must be a JSON object")
    return schema
