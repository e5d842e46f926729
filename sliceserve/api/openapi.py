"""The API's own description, /openapi.json: what each route takes and every answer it gives.

Requests are described by their pydantic models, which FastAPI does. Answers are msgspec structs,
and the table below says which of them each route gives.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from msgspec import UNSET, Struct, inspect
from prometheus_client import CONTENT_TYPE_LATEST

from sliceserve.api import replies
from sliceserve.api.backend import Backend
from sliceserve.api.limits import Accounts
from sliceserve.api.replies import ErrorReply
from sliceserve.api.responses.replies import EVENTS, ResponseReply

Schema = dict[str, Any]

# Requests and answers may have parts of one name; FastAPI tells its own apart so, too.
_SUFFIX = "-Output"
_REF = "#/components/schemas/{name}" + _SUFFIX
_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds after which another try may succeed.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    }
}
_CHALLENGE = {"WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}}}
_ERRORS = {
    400: "The request is at fault; the message says how.",
    403: "The key's tenant may not do this.",
    401: "The key is missing or unknown.",
    404: "There is no such thing here; the message says what there is.",
    413: "The body is too large.",
    429: "The server is full, or a limit of the key is reached.",
    500: "The server failed; its log says why.",
    503: "The server is shutting down, or its engine has stopped.",
    504: "The server at the far end of a split client did not answer in time.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """``reply`` is a struct, or the schema of what is none. ``errors`` are statuses in OpenAI's
    shape, ``also`` those that come with ``reply``. Where a stream may be asked for, ``events`` are
    what its events may have for data."""

    summary: str
    reply: type[Struct] | Schema
    media_type: str = "application/json"
    errors: tuple[int, ...] = ()
    also: tuple[int, ...] = ()
    events: tuple[type[Struct], ...] = ()


_QUESTION = (401, 500)
_WORK = (400, 401, 403, 404, 413, 429, 500, 503)
_GENERATION = (*_WORK, 504)
_ANSWERS = {
    "/v1/models": Answers(
        summary="The models served here", reply=replies.ModelList, errors=_QUESTION
    ),
    "/v1/models/{name}": Answers(
        summary="One model", reply=replies.ModelCard, errors=(*_QUESTION, 403, 404)
    ),
    "/v1/completions": Answers(
        summary="Complete one or several prompts",
        reply=replies.Completion,
        errors=_GENERATION,
        events=(replies.Completion,),
    ),
    "/v1/chat/completions": Answers(
        summary="Answer a conversation",
        reply=replies.ChatCompletion,
        errors=_GENERATION,
        events=(replies.ChatCompletionChunk,),
    ),
    "/v1/responses": Answers(
        summary="Answer a conversation, as OpenAI's Responses API does; nothing is stored",
        reply=ResponseReply,
        errors=_GENERATION,
        events=EVENTS,
    ),
    "/tokenize": Answers(
        summary="Tokens of a text or of a conversation",
        reply=replies.Tokenized,
        errors=_WORK,
    ),
    "/detokenize": Answers(summary="Text of tokens", reply=replies.Detokenized, errors=_WORK),
    "/tokenizer_info": Answers(
        summary="The tokenizer's configuration",
        reply={
            "type": "object",
            "properties": {"tokenizer_class": {"type": "string"}},
            "required": ["tokenizer_class"],
        },
        errors=_QUESTION,
    ),
    "/v1/split/info": Answers(
        summary="What a split client may want to know before it loads a head",
        reply=replies.SplitInfo,
        errors=_QUESTION,
    ),
    "/v1/split/profiles/{digest}": Answers(
        summary="A profile of the calibrated codec",
        reply={"type": "string", "format": "binary"},
        media_type="application/octet-stream",
        errors=(*_QUESTION, 404),
    ),
    "/health": Answers(
        summary="Whether the server takes work; 503 if it does not",
        reply=replies.Health,
        also=(503,),
    ),
    "/version": Answers(summary="The server's version", reply=replies.Version),
    "/metrics": Answers(
        summary="Counts for Prometheus", reply={"type": "string"}, media_type=CONTENT_TYPE_LATEST
    ),
}


def describe(app: FastAPI, backend: Backend, accounts: Accounts) -> Callable[[], Schema]:
    """What makes the document when it is asked for, for ``app.openapi``."""

    @cache
    def document(has_keys: bool) -> Schema:
        made = _document(app)
        _tell_vocabulary(made, backend.tokenizer.vocab_size)
        if has_keys:
            _ask_for_keys(made)
        return made

    return lambda: document(accounts.ask_for_keys)


def _document(app: FastAPI) -> Schema:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            # This server answers 400 where FastAPI would answer 422.
            operation["responses"].pop("422", None)
            if (answers := _ANSWERS.get(path)) is not None:
                operation["summary"] = answers.summary
                operation["responses"] = _described(answers)
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    whole = [answer.reply for answer in _ANSWERS.values() if isinstance(answer.reply, type)]
    events = [event for answer in _ANSWERS.values() for event in answer.events]
    schemas.update(_schemas_of([*whole, *events, ErrorReply]))
    return _with_integers(document)


def _with_integers(value: Any) -> Any:
    """FastAPI makes floats of all bounds, and not every float near 2^63 is the one meant."""
    match value:
        case dict():
            return {key: _with_integers(inner) for key, inner in value.items()}
        case list():
            return [_with_integers(inner) for inner in value]
        case float() if value.is_integer():
            return int(value)
    return value


def _described(answers: Answers) -> Schema:
    reply = answers.reply
    content = {
        answers.media_type: {"schema": _reference(reply) if isinstance(reply, type) else reply}
    }
    if answers.events:
        body = {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"anyOf": [_reference(event) for event in answers.events]},
        }
        data = {"anyOf": [body, {"const": "[DONE]"}]}
        # OpenAPI 3.1 has no word for a stream: tools take the schema for that of each event.
        content["text/event-stream"] = {
            "schema": {"type": "object", "properties": {"data": data}, "required": ["data"]}
        }
    good = {"description": "As asked for.", "content": content}
    same = {str(status): good for status in answers.also}
    return {"200": good, **same, **{str(status): _error(status) for status in answers.errors}}


def _error(status: int) -> Schema:
    answer: Schema = {
        "description": _ERRORS[status],
        "content": {"application/json": {"schema": _reference(ErrorReply)}},
    }
    if status in (429, 503):
        answer["headers"] = _RETRY_AFTER
    if status == 401:
        answer["headers"] = _CHALLENGE
    return answer


def _tell_vocabulary(document: Schema, vocab_size: int) -> None:
    """The bound of token ids, which no request's type knows."""
    tokens = document["components"]["schemas"]["DetokenizeRequest"]["properties"]["tokens"]
    tokens["items"]["maximum"] = vocab_size - 1


def _ask_for_keys(document: Schema) -> None:
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for operations in document["paths"].values():
        for operation in operations.values():
            if "401" in operation["responses"]:
                operation["security"] = [{"key": []}]


def _reference(struct: type[Struct]) -> Schema:
    return {"$ref": _REF.format(name=struct.__name__)}


def _schemas_of(structs: Iterable[type[Struct]]) -> dict[str, Schema]:
    """Schemas of these and of all that they are made of, by name."""
    structs = list(structs)
    _, named = msgspec.json.schema_components(structs, ref_template=_REF)
    schemas = {name + _SUFFIX: schema for name, schema in named.items()}
    for info in inspect.multi_type_info(structs):
        _require_what_is_sent(info, schemas, set())
    return schemas


def _require_what_is_sent(kind: Any, schemas: dict[str, Schema], seen: set[type]) -> None:
    """A struct's schema requires what a decoder needs; but encoded, only what can be unset may be
    missing."""
    match kind:
        case inspect.StructType(cls=struct, fields=fields) if struct not in seen:
            seen.add(struct)
            known = msgspec.structs.fields(struct)
            sent = [field.encode_name for field in known if field.default is not UNSET]
            tag = [kind.tag_field] if kind.tag_field is not None else []
            schemas[struct.__name__ + _SUFFIX]["required"] = [*tag, *sent]
            parts: Iterable[Any] = [field.type for field in fields]
        case inspect.UnionType(types=parts):
            pass
        case inspect.ListType(item_type=part) | inspect.DictType(value_type=part):
            parts = [part]
        case _:
            parts = ()
    for part in parts:
        _require_what_is_sent(part, schemas, seen)
