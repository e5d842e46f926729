"""OpenAI's public response schemas, restated: what must be there, what may be null, which words.

From its OpenAPI document and the types of its Python package. Objects are closed, so that a field
of ours that nobody there knows is seen; those that vLLM adds, and programs expect, are named.
"""

from typing import Any

import jsonschema

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
NULL: Schema = {"type": "null"}
LOGPROB: Schema = {"type": "number", "maximum": 0, "minimum": -9999}


def nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, NULL]}


def one_of(*values: Any) -> Schema:
    return {"enum": list(values)}


def list_of(items: Schema, **bounds: int) -> Schema:
    return {"type": "array", "items": items, **bounds}


def record(required: Schema, optional: Schema | None = None) -> Schema:
    optional = optional or {}
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


# --- /v1/completions and /v1/chat/completions

USAGE = record(
    {"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT},
    {
        "prompt_tokens_details": record({"cached_tokens": COUNT}, {"audio_tokens": COUNT}),
        "completion_tokens_details": record(
            {},
            {
                "reasoning_tokens": COUNT,
                "audio_tokens": COUNT,
                "accepted_prediction_tokens": COUNT,
                "rejected_prediction_tokens": COUNT,
            },
        ),
    },
)
ANSWER = {"id": STRING, "created": COUNT, "model": STRING, "system_fingerprint": nullable(STRING)}
COMPLETION_LOGPROBS = record(
    {
        "text_offset": list_of(COUNT),
        # The first token of a prompt has nothing before it.
        "token_logprobs": list_of(nullable(LOGPROB)),
        "tokens": list_of(STRING),
        "top_logprobs": nullable(
            list_of(nullable({"type": "object", "additionalProperties": LOGPROB}))
        ),
    }
)


# vLLM's. For each token of the prompt it and the likeliest, by token id; nothing of the first.
PROMPT_LOGPROBS = list_of(
    nullable(
        {
            "type": "object",
            "patternProperties": {
                "^[0-9]+$": record(
                    {"logprob": LOGPROB, "rank": INTEGER, "decoded_token": STRING},
                )
            },
            "additionalProperties": False,
            "minProperties": 1,
        }
    )
)


def completion(finish_reason: Schema) -> Schema:
    choice = record(
        {
            "index": COUNT,
            "text": STRING,
            "logprobs": nullable(COMPLETION_LOGPROBS),
            "finish_reason": finish_reason,
        },
        {"prompt_logprobs": PROMPT_LOGPROBS},
    )
    return record(
        {**ANSWER, "object": one_of("text_completion"), "choices": list_of(choice)},
        {"usage": nullable(USAGE)},
    )


FINISHED = one_of("stop", "length", "content_filter")
COMPLETION = completion(FINISHED)
COMPLETION["required"].append("usage")
COMPLETION_CHUNK = completion(nullable(FINISHED))

TOKEN = {"token": STRING, "logprob": LOGPROB, "bytes": nullable(list_of(COUNT))}
CHAT_LOGPROBS = record(
    {
        "content": nullable(list_of(record({**TOKEN, "top_logprobs": list_of(record(TOKEN))}))),
        "refusal": nullable(list_of(record({**TOKEN, "top_logprobs": list_of(record(TOKEN))}))),
    }
)
CHAT_FINISHED = one_of("stop", "length", "tool_calls", "content_filter", "function_call")
TOOL_CALL = record(
    {
        "id": STRING,
        "type": one_of("function"),
        "function": record({"name": STRING, "arguments": STRING}),
    }
)
MESSAGE = record(
    {"role": one_of("assistant"), "content": nullable(STRING), "refusal": nullable(STRING)},
    {"annotations": list_of({}), "tool_calls": list_of(TOOL_CALL, minItems=1), "audio": NULL},
)
CHAT_COMPLETION = record(
    {
        **ANSWER,
        "object": one_of("chat.completion"),
        "choices": list_of(
            record(
                {
                    "index": COUNT,
                    "message": MESSAGE,
                    "logprobs": nullable(CHAT_LOGPROBS),
                    "finish_reason": CHAT_FINISHED,
                },
            )
        ),
        "usage": USAGE,
    },
    {"service_tier": nullable(STRING), "prompt_logprobs": PROMPT_LOGPROBS},
)
DELTA = record(
    {},
    {
        "role": one_of("assistant"),
        "content": nullable(STRING),
        "refusal": nullable(STRING),
        "tool_calls": list_of(
            record(
                {"index": COUNT},
                {
                    "id": STRING,
                    "type": one_of("function"),
                    "function": record({}, {"name": STRING, "arguments": STRING}),
                },
            ),
            minItems=1,
        ),
    },
)
CHAT_CHUNK = record(
    {
        **ANSWER,
        "object": one_of("chat.completion.chunk"),
        "choices": list_of(
            record(
                {"index": COUNT, "delta": DELTA, "finish_reason": nullable(CHAT_FINISHED)},
                {"logprobs": nullable(CHAT_LOGPROBS)},
            )
        ),
    },
    {"usage": nullable(USAGE), "service_tier": nullable(STRING)},
)

# --- /v1/models, and errors

MODEL = record(
    {"id": STRING, "object": one_of("model"), "created": COUNT, "owned_by": STRING},
    # vLLM's.
    {
        "root": STRING,
        "parent": nullable(STRING),
        "max_model_len": COUNT,
        "permission": list_of({"type": "object"}),
    },
)
MODEL_LIST = record({"object": one_of("list"), "data": list_of(MODEL)})
ERROR = record(
    {
        "error": record(
            {
                "message": {"type": "string", "minLength": 1},
                "type": STRING,
                "param": nullable(STRING),
                "code": nullable(STRING),
            }
        )
    }
)

# --- /v1/responses

STATUS = one_of("in_progress", "completed", "incomplete")
RESPONSE_TOKEN = {"token": STRING, "logprob": LOGPROB, "bytes": list_of(COUNT)}
RESPONSE_LOGPROBS = list_of(
    record({**RESPONSE_TOKEN, "top_logprobs": list_of(record(RESPONSE_TOKEN))})
)
OUTPUT_TEXT = record(
    {
        "type": one_of("output_text"),
        "text": STRING,
        "annotations": list_of({}),
        "logprobs": RESPONSE_LOGPROBS,
    }
)
OUTPUT_MESSAGE = record(
    {
        "type": one_of("message"),
        "id": STRING,
        "role": one_of("assistant"),
        "status": STATUS,
        "content": list_of(OUTPUT_TEXT),
    }
)
FUNCTION_CALL = record(
    {
        "type": one_of("function_call"),
        "id": STRING,
        "call_id": STRING,
        "name": STRING,
        "arguments": STRING,
        "status": STATUS,
    }
)
OUTPUT_ITEM: Schema = {"anyOf": [OUTPUT_MESSAGE, FUNCTION_CALL]}
FUNCTION_TOOL = record(
    {
        "type": one_of("function"),
        "name": STRING,
        "parameters": nullable({"type": "object"}),
        "strict": nullable(BOOLEAN),
    },
    {"description": nullable(STRING)},
)
TOOL_CHOICE: Schema = {
    "anyOf": [
        one_of("none", "auto", "required"),
        record({"type": one_of("function"), "name": STRING}),
        record(
            {
                "type": one_of("allowed_tools"),
                "mode": one_of("auto", "required"),
                "tools": list_of({"type": "object"}),
            }
        ),
    ]
}
TEXT_FORMAT: Schema = {
    "anyOf": [
        record({"type": one_of("text", "json_object")}),
        record(
            {"type": one_of("json_schema"), "name": STRING, "schema": {"type": "object"}},
            {"description": nullable(STRING), "strict": nullable(BOOLEAN)},
        ),
    ]
}
RESPONSE_USAGE = record(
    {
        "input_tokens": COUNT,
        "input_tokens_details": record({"cached_tokens": COUNT, "cache_write_tokens": COUNT}),
        "output_tokens": COUNT,
        "output_tokens_details": record({"reasoning_tokens": COUNT}),
        "total_tokens": COUNT,
    }
)
RESPONSE = record(
    {
        "id": STRING,
        "object": one_of("response"),
        "created_at": NUMBER,
        "status": one_of("in_progress", "completed", "incomplete", "failed"),
        "error": nullable(
            record(
                {
                    "code": one_of("server_error", "rate_limit_exceeded", "invalid_prompt"),
                    "message": STRING,
                }
            )
        ),
        "incomplete_details": nullable(
            record({"reason": one_of("max_output_tokens", "content_filter")})
        ),
        "instructions": nullable(STRING),
        "metadata": {"type": "object", "additionalProperties": STRING},
        "model": STRING,
        "output": list_of(OUTPUT_ITEM),
        "parallel_tool_calls": BOOLEAN,
        "temperature": nullable(NUMBER),
        "tool_choice": TOOL_CHOICE,
        "tools": list_of(FUNCTION_TOOL),
        "top_p": nullable(NUMBER),
    },
    {
        "background": nullable(BOOLEAN),
        "completed_at": nullable(NUMBER),
        "max_output_tokens": nullable(COUNT),
        "max_tool_calls": nullable(COUNT),
        "previous_response_id": NULL,
        "prompt_cache_key": nullable(STRING),
        "reasoning": nullable(record({"effort": nullable(STRING), "summary": nullable(STRING)})),
        "safety_identifier": nullable(STRING),
        "service_tier": one_of("default"),
        "store": one_of(False),
        "text": record({"format": TEXT_FORMAT}, {"verbosity": one_of("low", "medium", "high")}),
        "top_logprobs": nullable(COUNT),
        "truncation": one_of("auto", "disabled"),
        "usage": nullable(RESPONSE_USAGE),
        "user": nullable(STRING),
    },
)

_ITEM = {"output_index": COUNT, "item": OUTPUT_ITEM}
_PLACE = {"item_id": STRING, "output_index": COUNT}
_PART = {**_PLACE, "content_index": COUNT}
_EVENTS: dict[str, Schema] = {
    "response.created": {"response": RESPONSE},
    "response.in_progress": {"response": RESPONSE},
    "response.completed": {"response": RESPONSE},
    "response.incomplete": {"response": RESPONSE},
    "response.failed": {"response": RESPONSE},
    "response.output_item.added": _ITEM,
    "response.output_item.done": _ITEM,
    "response.content_part.added": {**_PART, "part": OUTPUT_TEXT},
    "response.content_part.done": {**_PART, "part": OUTPUT_TEXT},
    "response.output_text.delta": {**_PART, "delta": STRING, "logprobs": RESPONSE_LOGPROBS},
    "response.output_text.done": {**_PART, "text": STRING, "logprobs": RESPONSE_LOGPROBS},
    "response.function_call_arguments.delta": {**_PLACE, "delta": STRING},
    "response.function_call_arguments.done": {**_PLACE, "arguments": STRING},
}


def response_event(name: str) -> Schema:
    return record({"type": one_of(name), "sequence_number": COUNT, **_EVENTS[name]})


def expect(body: Any, schema: Schema) -> None:
    """Raise jsonschema.ValidationError, which names the place and the rule."""
    jsonschema.Draft202012Validator(schema).validate(body)
