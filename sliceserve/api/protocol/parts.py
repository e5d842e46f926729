"""Types that fields of requests share, and how strict they are.

Fields are checked strictly: no unknown names, no strings for numbers. A parameter that OpenAI has
and this server has not is accepted at the value at which it does nothing, and refused otherwise, so
that nobody believes in a parameter that was never applied.
"""

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    WithJsonSchema,
    WrapValidator,
)
from pydantic_core import PydanticCustomError, core_schema

from sliceserve.configs.sampling import MAX_BIASES

# More than any vocabulary has, and few enough for every number on the way.
_MAX_TOKEN_IDS = 1 << 31


@dataclass(frozen=True, slots=True)
class Only:
    """Accepts null and ``values``, and refuses the rest with a sentence. The JSON schema says so,
    too."""

    values: tuple[Any, ...]
    refusal: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: Any, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "enum": [None, *self.values]}

    def _check(self, value: Any) -> Any:
        if value is None or any(value == accepted for accepted in self.values):
            return value
        raise PydanticCustomError("unsupported_parameter", "{refusal}", {"refusal": self.refusal})


def neutral(*values: Any) -> Only:
    """Accept only what changes nothing."""
    words = " or ".join(repr(value).lower() for value in values) or "null"
    return Only(
        values, f"This parameter is not supported by this server; leave it out or send {words}."
    )


def replaced_by(successor: str) -> Only:
    """Refuse what OpenAI has given up."""
    return Only((), f"This parameter is deprecated, and not supported; send '{successor}' instead.")


def one_of(sentence: str) -> WrapValidator:
    """One sentence for a union's failure, instead of one for each of its branches."""

    def check(value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            raise PydanticCustomError("union_type", "expected {s}", {"s": sentence}) from error

    return WrapValidator(check)


def _expect_unicode(text: str) -> str:
    # JSON can spell half of a surrogate pair, which no tokenizer and no answer can hold.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("not valid Unicode: it has half of a surrogate pair") from error
    return text


def _expect_json(value: dict[str, Any]) -> dict[str, Any]:
    """What a template can write: parsers let pass what JSON has not."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from error
    return value


def missing(field: str) -> ValidationError:
    """For a validator of a whole part: it lacks ``field``."""
    return ValidationError.from_exception_data(
        "Part", [{"type": "missing", "loc": (field,), "input": None}]
    )


Text = Annotated[str, AfterValidator(_expect_unicode)]
Json = Annotated[dict[str, Any], AfterValidator(_expect_json)]


_BIASED = r"^[0-9]{1,9}$"


def _expect_token_ids(biases: dict[str, float]) -> dict[str, float]:
    for token_id in biases:
        if not re.fullmatch(_BIASED, token_id, re.ASCII):
            raise ValueError(f"the keys are token ids, got {token_id!r}")
    return biases


TokenId = Annotated[int, Field(ge=0, lt=_MAX_TOKEN_IDS)]
Biases = Annotated[
    dict[str, Annotated[float, Field(ge=-100.0, le=100.0)]],
    Field(max_length=MAX_BIASES),
    AfterValidator(_expect_token_ids),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": _BIASED},
            "maxProperties": MAX_BIASES,
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        }
    ),
]
StopString = Annotated[Text, Field(min_length=1)]


class Part(BaseModel):
    """Base of everything in a request. ``RULES`` say in JSON Schema what validators of the whole
    check, so that the API's description is true."""

    model_config = ConfigDict(extra="forbid", strict=True)
    RULES: ClassVar[tuple[dict[str, Any], ...]] = ()

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: Any, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        described = handler.resolve_ref_schema(handler(schema))
        # Those of a base class hold, too.
        rules = [rule for base in cls.__mro__ for rule in vars(base).get("RULES", ())]
        return {**described, "allOf": rules} if rules else described

    def expect_consistent(self) -> None:
        """Raise ValueError for fields that are fine each, but not together, in a way that no
        schema can tell."""


def excludes(one: str, other: str) -> dict[str, Any]:
    """A rule: not both may be true."""
    both = {one: {"const": True}, other: {"const": True}}
    return {"not": {"properties": both, "required": [one, other]}}


def together(**fields: dict[str, Any]) -> dict[str, Any]:
    """A rule: all ``fields`` must be there, each as its schema says."""
    return {"properties": fields, "required": list(fields)}


def needs(field: str, unless: list[Any], **others: dict[str, Any]) -> dict[str, Any]:
    """A rule: where ``field`` is none of ``unless``, ``others`` must be there, each as its schema
    says."""
    idle = {"properties": {field: {"enum": unless}}}
    return {"anyOf": [idle, together(**others)]}
