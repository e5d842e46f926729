"""Every body that goes out, against OpenAI's schemas as restated, and its own Python types."""

import json

import openai_shapes as shapes
import pytest
from asgi_client import asgi_client
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from openai_shapes import expect
from pydantic import TypeAdapter

TEXT = {"model": "tiny", "prompt": "Hi", "max_tokens": 5}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
ASK = {"model": "tiny", "input": "Hi"}
WITH_USAGE = {"stream_options": {"include_usage": True}}
RESPONSE_LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}

LOOK = {"name": "look", "parameters": {"type": "object"}}
CALLS = (
    'So:<tool_call>\n{"name": "look", "arguments": {"at": "é"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
)

COMPLETIONS = [{}, {"logprobs": 2}, {"n": 2, "prompt": ["a", "b"]}, {"max_tokens": 30}]
ECHOES = [{}, {"logprobs": 2}, {"logprobs": 0, "n": 2}, {"max_tokens": 0}]
CALLING = [{}, {"logprobs": True}, {"parallel_tool_calls": False}, {"max_tokens": 60}, {"n": 2}]
CHATS = [
    {},
    {"logprobs": True, "top_logprobs": 2},
    {"logprobs": True, "n": 2},
    {"max_tokens": 3},
]
RESPONSES = [{}, RESPONSE_LOGPROBS, {"max_output_tokens": 3, "instructions": "Be.", "user": "u"}]


@pytest.fixture
async def client(backend_of, fake):
    async with asgi_client(backend_of(fake("é, Hello"))) as client:
        yield client


@pytest.fixture
async def caller(backend_of, fake):
    async with asgi_client(backend_of(fake(CALLS, max_model_len=4096))) as client:
        yield client


@pytest.fixture
async def scorer(backend_of, make_engine):
    """One with a model, which alone can score prompts."""
    async with asgi_client(backend_of(await make_engine())) as client:
        yield client


async def whole(client, path, body):
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


async def streamed(client, path, body):
    """The data of all events."""
    response = await client.post(path, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    lines = response.text.split("\n")
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


async def expect_completion(client, request):
    """The body, which is as it should be, and so are the chunks of the same streamed."""
    body = await whole(client, "/v1/completions", request)
    expect(body, shapes.COMPLETION)
    for options in ({}, WITH_USAGE):
        *chunks, end = await streamed(client, "/v1/completions", {**request, **options})
        assert end == "[DONE]"
        for chunk in map(json.loads, chunks):
            expect(chunk, shapes.COMPLETION_CHUNK)
            assert ("usage" in chunk) == bool(options)
    return body


async def expect_chat(client, request):
    body = await whole(client, "/v1/chat/completions", request)
    expect(body, shapes.CHAT_COMPLETION)
    ChatCompletion.model_validate(body, strict=True)
    for options in ({}, WITH_USAGE):
        *chunks, end = await streamed(client, "/v1/chat/completions", {**request, **options})
        assert end == "[DONE]"
        for chunk in map(json.loads, chunks):
            expect(chunk, shapes.CHAT_CHUNK)
            ChatCompletionChunk.model_validate(chunk, strict=True)
            assert ("usage" in chunk) == bool(options)
    return body


async def expect_response(client, request):
    body = await whole(client, "/v1/responses", request)
    expect(body, shapes.RESPONSE)
    Response.model_validate(body, strict=True)
    adapter = TypeAdapter(ResponseStreamEvent)
    for event in map(json.loads, await streamed(client, "/v1/responses", request)):
        expect(event, shapes.response_event(event["type"]))
        adapter.validate_python(event, strict=True)
    return body


@pytest.mark.parametrize("change", COMPLETIONS)
async def test_completions(client, change):
    body = await expect_completion(client, {**TEXT, **change})
    # Its type knows no null, which an echo has for the first token, as its service has.
    Completion.model_validate(body, strict=True)


@pytest.mark.parametrize("change", ECHOES)
async def test_echoes(scorer, change):
    body = await expect_completion(scorer, {**TEXT, "echo": True, **change})
    assert all(choice["text"].startswith("Hi") for choice in body["choices"])


@pytest.mark.parametrize("num_top", [0, 2])
async def test_prompts_that_are_scored(scorer, num_top):
    change = {"prompt_logprobs": num_top, "max_tokens": 2}
    body = await whole(scorer, "/v1/completions", {**TEXT, **change})
    expect(body, shapes.COMPLETION)
    assert len(body["choices"][0]["prompt_logprobs"]) == len("Hi")
    body = await whole(scorer, "/v1/chat/completions", {**CHAT, **change})
    expect(body, shapes.CHAT_COMPLETION)
    assert len(body["prompt_logprobs"]) == body["usage"]["prompt_tokens"]


@pytest.mark.parametrize("change", CHATS)
async def test_chats(client, change):
    await expect_chat(client, {**CHAT, **change})


@pytest.mark.parametrize("change", CALLING)
async def test_chats_that_call(caller, change):
    tools = [{"type": "function", "function": LOOK}]
    body = await expect_chat(caller, {**CHAT, "tools": tools, **change})
    assert all(choice["message"]["tool_calls"] for choice in body["choices"])


@pytest.mark.parametrize("change", RESPONSES)
async def test_responses(client, change):
    await expect_response(client, {**ASK, **change})


@pytest.mark.parametrize("change", [{}, {"max_output_tokens": 60}, {"parallel_tool_calls": False}])
async def test_responses_that_call(caller, change):
    tools = [{"type": "function", **LOOK}]
    body = await expect_response(caller, {**ASK, "tools": tools, **change})
    assert "function_call" in [item["type"] for item in body["output"]]


async def test_a_failed_response(backend_of, fake):
    engine = fake("Hello")
    engine.fail_after = 2
    async with asgi_client(backend_of(engine)) as client:
        *_, last = await streamed(client, "/v1/responses", ASK)
        expect(json.loads(last), shapes.response_event("response.failed"))
        *_, failure, end = await streamed(client, "/v1/completions", TEXT)
        expect(json.loads(failure), shapes.ERROR)
        assert end == "[DONE]"


async def test_models(client):
    listed = (await client.get("/v1/models")).json()
    expect(listed, shapes.MODEL_LIST)
    card = (await client.get("/v1/models/tiny")).json()
    expect(card, shapes.MODEL)
    Model.model_validate(card, strict=True)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/completions", {"prompt": "x"}, 400),
        ("POST", "/v1/chat/completions", {**CHAT, "model": "gpt-9"}, 404),
        ("POST", "/v1/responses", {**ASK, "store": True}, 400),
        ("POST", "/v1/completions", {**TEXT, "prompt": "x" * 200}, 400),
        ("POST", "/tokenize", {}, 400),
        ("GET", "/v1/models/gpt-9", None, 404),
        ("GET", "/v1/nothing", None, 404),
        ("DELETE", "/v1/models/tiny", None, 405),
    ],
)
async def test_errors(client, method, path, body, status):
    response = await client.request(method, path, json=body)
    assert response.status_code == status
    expect(response.json(), shapes.ERROR)


async def test_the_schemas_refuse_what_is_wrong(client):
    body = await whole(client, "/v1/chat/completions", CHAT)
    for damage in (
        {"object": "chat.completions"},
        {"choices": [{**body["choices"][0], "finish_reason": None}]},
        {"created": "now"},
        {"wisdom": 1},
    ):
        with pytest.raises(shapes.jsonschema.ValidationError):
            expect({**body, **damage}, shapes.CHAT_COMPLETION)
