"""What is right to send, and how to damage it: JSON bodies by their structure, and bytes."""

import copy
import math
import random
from typing import Any

_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
_FUNCTION = {"name": "look", "description": "Looks.", "parameters": _SCHEMA}
_CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
_HI = [{"role": "user", "content": "Hi"}]
# What is right, for each route; the model is added.
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/completions": [
        {"prompt": "Hello", "max_tokens": 3},
        {"prompt": ["a", "b"], "n": 2, "max_tokens": 2, "logprobs": 2, "stop": ["x", "yy"]},
        {"prompt": [5, 6], "max_tokens": 2, "stream": True, "temperature": 0.5, "seed": 3},
        {"prompt": [[5], [6, 7]], "echo": True, "logprobs": 1, "max_tokens": 1},
        {"prompt": "a", "max_tokens": 2, "logit_bias": {"5": 2}, "presence_penalty": 0.5},
    ],
    "/v1/chat/completions": [
        {"messages": _HI, "max_tokens": 3},
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
            "max_completion_tokens": 3,
            "logprobs": True,
            "top_logprobs": 2,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        {
            "messages": _HI,
            "max_tokens": 3,
            "tools": [{"type": "function", "function": _FUNCTION}],
            "tool_choice": "auto",
        },
        {
            "messages": [
                *_HI,
                {"role": "assistant", "content": None, "tool_calls": [_CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": "1"},
            ],
            "max_tokens": 3,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "s", "schema": _SCHEMA},
            },
        },
    ],
    "/v1/responses": [
        {"input": "Hi", "max_output_tokens": 3},
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "1"},
            ],
            "tools": [{"type": "function", "strict": False, **_FUNCTION}],
            "instructions": "Be.",
            "max_output_tokens": 3,
            "stream": True,
        },
        {
            "input": "Hi",
            "max_output_tokens": 3,
            "text": {"format": {"type": "json_schema", "name": "s", "schema": _SCHEMA}},
        },
    ],
    "/tokenize": [{"prompt": "Hello"}, {"messages": _HI, "return_token_strs": True}],
    "/detokenize": [{"tokens": [5, 6, 7]}],
}


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


_HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 2**31, 2**63, -(2**63) - 1, 2**80, 10**400),
    *(1e308, -1e308, 5e-324, math.nan, math.inf, -math.inf),
    *(
        "",
        " ",
        "\0",
        "\ud800",
        "\udfff\ud800",
        "a" * 5000,
        "💩" * 50,
        "9" * 400,
        "{{ 1 }}",
        "\u202e",
    ),
    *([], {}, [[]], [None] * 100, {"": None}, {"a": {"$ref": "#"}}, {"\ud800": 1}),
    *([2**31] * 3, _nested(50), _nested(120)),
)


def mutate(body: Any, rng: random.Random, donors: list[Any]) -> Any:
    """``body`` with one to three things wrong; a part of a donor may take the place of one."""
    body = copy.deepcopy(body)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = _places(body)
        if not places:
            return copy.deepcopy(rng.choice(_HOSTILE))
        container, key = rng.choice(places)
        match rng.randrange(7):
            case 0 | 1:
                container[key] = copy.deepcopy(rng.choice(_HOSTILE))
            case 2:
                donor, part = rng.choice(_places(rng.choice(donors)))
                container[key] = copy.deepcopy(donor[part])
            case 3:
                del container[key]
            case 4 if isinstance(container, dict):
                container[f"{key}{rng.choice(('', 's', chr(0)))}x"] = container.pop(key)
            case 5 if isinstance(container, list):
                container += [container[key]] * rng.choice((1, 20))
            case _:
                container[key] = [container[key]]
    return body


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) within."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    return [place for key, inner in items for place in ((value, key), *_places(inner))]


def damage(data: bytes, rng: random.Random) -> bytes:
    """Bytes with something wrong."""
    at = rng.randrange(len(data) + 1)
    match rng.randrange(6):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:]
        case 2:
            return data[:at] + data[rng.randrange(len(data) + 1) :]
        case 3:
            return rng.randbytes(rng.randrange(200))
        case 4:
            return b"[" * rng.choice((100, 100_000)) + data
        case _:
            flipped = bytearray(data)
            for _ in range(rng.choice((1, 4)) if data else 0):
                flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            return bytes(flipped)
