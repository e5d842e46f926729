"""Types that fields of requests share, and how strict they are.

Fields are checked strictly: no unknown names, no strings for numbers. A parameter that OpenAI has
and this server has not is accepted at the value at which it does nothing, and refused otherwise, so
that nobody believes in a parameter that was never applied.
"""

import json
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from sliceserve.configs.sampling import MAX_BIASES

# More than any vocabulary has, and few enough for every number on the way.
_MAX_TOKEN_IDS = 1 << 31


def neutral(*values: Any) -> AfterValidator:
    """Accept only what changes nothing."""

    def check(value: Any) -> Any:
        if value is None or any(value == neutral for neutral in values):
            return value
        raise PydanticCustomError(
            "unsupported_parameter",
            "This parameter is not supported by this server; leave it out or send {neutral}.",
            {"neutral": " or ".join(repr(v).lower() for v in values) or "null"},
        )

    return AfterValidator(check)


def replaced_by(successor: str) -> AfterValidator:
    """Refuse what OpenAI has given up."""

    def check(value: Any) -> Any:
        if value is None:
            return value
        raise PydanticCustomError(
            "unsupported_parameter",
            "This parameter is deprecated, and not supported; send '{successor}' instead.",
            {"successor": successor},
        )

    return AfterValidator(check)


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


def _expect_token_ids(biases: dict[str, float]) -> dict[str, float]:
    for token_id in biases:
        if not (token_id.isascii() and token_id.isdecimal() and int(token_id) < _MAX_TOKEN_IDS):
            raise ValueError(f"the keys are token ids, got {token_id!r}")
    return biases


TokenId = Annotated[int, Field(ge=0, lt=_MAX_TOKEN_IDS)]
Biases = Annotated[
    dict[str, Annotated[float, Field(ge=-100.0, le=100.0)]],
    Field(max_length=MAX_BIASES),
    AfterValidator(_expect_token_ids),
]
StopString = Annotated[Text, Field(min_length=1)]


class Part(BaseModel):
    """Base of everything in a request."""

    model_config = ConfigDict(extra="forbid", strict=True)
