"""Every refusal has OpenAI's shape, the right status and a sentence that helps."""

import asyncio
import json

import httpx
import pytest
from asgi_client import asgi_client

from sliceserve.api.gate import MAX_BODY_BYTES

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
COMPLETION = {"model": "tiny", "prompt": "Hi"}


def error_of(response, status):
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.fixture
async def client(backend_of, fake):
    async with asgi_client(backend_of(fake())) as client:
        yield client


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
        ({"max_tokens": True}, "max_tokens", "invalid_type"),
        ({"n": 129}, "n", "invalid_value"),
        ({"stop": ["a"] * 17}, "stop", "invalid_type"),
        ({"stop": ""}, "stop", "invalid_type"),
        ({"stop": 7}, "stop", "invalid_type"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"stream_options": {"usage": True}}, "stream_options.usage", "unknown_parameter"),
        ({"presence_penalty": 2.5}, "presence_penalty", "invalid_value"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "invalid_value"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "king", "content": ""}]}, "messages[0].role", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
            "unsupported_parameter",
        ),
        ({"top_logprobs": 3}, None, "invalid_value"),
        ({"stream_options": {"include_usage": True}}, None, "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ],
)
async def test_chat_names_the_field_at_fault(client, change, param, code):
    error = error_of(await client.post("/v1/chat/completions", json={**CHAT, **change}), 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert code is None or error["code"] == code


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": {}}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [100000]}, "prompt"),
        ({"prompt": ""}, None),
        ({"prompt": [[]]}, None),
        ({"prompt": ["a"] * 65, "n": 2}, "n"),
        ({"echo": 1}, "echo"),
        ({"best_of": 129}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": True}, "logprobs"),
    ],
)
async def test_completions_name_the_field_at_fault(client, change, param):
    response = await client.post("/v1/completions", json={**COMPLETION, **change})
    assert error_of(response, 400)["param"] == param


async def test_neutral_values_of_what_is_not_supported_are_fine(client):
    chat = {
        **CHAT,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "response_format": {"type": "text"},
        "tools": None,
        "tool_choice": "none",
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "n": None,
        "stream_options": None,
    }
    assert (await client.post("/v1/chat/completions", json=chat)).status_code == 200
    text = {**COMPLETION, "echo": False, "best_of": 1, "suffix": None, "logit_bias": None}
    assert (await client.post("/v1/completions", json=text)).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b'{"model": }', b"\xff\xfe"])
async def test_a_body_that_is_no_json_object(client, body):
    response = await client.post(
        "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
    )
    assert error_of(response, 400)["code"] == "invalid_json"


@pytest.mark.parametrize(
    "field",
    [
        '"temperature": NaN',
        '"top_p": NaN',
        '"min_p": Infinity',
        '"seed": 1e999',
        '"seed": ' + "9" * 5000,
        '"user": ' + "[" * 100_000,
        '"prompt": "\\ud800"',
        '"stop": "\\udfff"',
        '"model": "\\ud800"',
        '"\\ud800": 1',
    ],
)
async def test_hostile_json_is_refused(client, field):
    body = '{"model": "tiny", "prompt": "x", ' + field + "}"
    response = await client.post(
        "/v1/completions", content=body, headers={"Content-Type": "application/json"}
    )
    error_of(response, 400)


async def test_json_under_another_content_type(client):
    response = await client.post(
        "/v1/completions", content=json.dumps(COMPLETION), headers={"Content-Type": "text/plain"}
    )
    assert "Content-Type: application/json" in error_of(response, 400)["message"]


async def test_unknown_model_path_and_method(client):
    response = await client.post("/v1/completions", json={**COMPLETION, "model": "gpt-9"})
    error = error_of(response, 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "tiny" in error["message"]
    assert error_of(await client.get("/v1/nothing"), 404)["code"] == "not_found"
    wrong_method = await client.get("/v1/completions")
    assert error_of(wrong_method, 405)["code"] == "method_not_allowed"
    assert wrong_method.headers["allow"] == "POST"


@pytest.mark.parametrize("stream", [False, True])
async def test_too_long_a_prompt_says_by_how_much(client, stream):
    for change, numbers in [
        ({"prompt": "x" * 128}, ("128", "144", "16 in")),
        ({"prompt": "x" * 100, "max_tokens": 29}, ("128", "129", "100 in", "29 in")),
    ]:
        response = await client.post(
            "/v1/completions", json={**COMPLETION, **change, "stream": stream}
        )
        error = error_of(response, 400)
        assert error["code"] == "context_length_exceeded"
        assert all(number in error["message"] for number in numbers)
    fits = await client.post(
        "/v1/completions", json={**COMPLETION, "prompt": "x" * 100, "max_tokens": 28}
    )
    assert fits.status_code == 200


async def test_a_chat_template_that_refuses(client):
    messages = [{"role": "assistant", "content": "I begin"}]
    response = await client.post("/v1/chat/completions", json={**CHAT, "messages": messages})
    error = error_of(response, 400)
    assert error["param"] == "messages"
    assert "user first" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("refusal", "status", "retry_after"),
    [
        (("overloaded", "all 4 places are taken", 2.6), 429, "3"),
        (("draining", "going away", None), 503, "1"),
        (("server_unreachable", "no way through", None), 503, "1"),
        (("timeout", "no answer for 60 s", None), 504, None),
        (("context_length_exceeded", "too long by 3", None), 400, None),
        (("no_such_code", "odd", None), 500, None),
    ],
)
async def test_refusals_of_the_engine_have_their_status(
    backend_of, fake, stream, refusal, status, retry_after
):
    engine = fake()
    engine.refusal = refusal
    async with asgi_client(backend_of(engine)) as client:
        response = await client.post("/v1/completions", json={**COMPLETION, "stream": stream})
    error = error_of(response, status)
    assert (error["code"], error["message"]) == refusal[:2]
    assert response.headers.get("retry-after") == retry_after


async def test_an_error_in_the_middle_of_a_stream_is_an_event(backend_of, fake):
    engine = fake("Hello")
    engine.fail_after = 2
    async with asgi_client(backend_of(engine)) as client:
        response = await client.post("/v1/completions", json={**COMPLETION, "stream": True})
        assert response.status_code == 200
        events = [line[6:] for line in response.text.split("\n\n") if line]
        assert events[-1] == "[DONE]"
        assert json.loads(events[-2])["error"]["message"] == "a fuse blew"
        assert json.loads(events[0])["choices"][0]["text"] == "H"
        whole = await client.post("/v1/completions", json=COMPLETION)
        assert error_of(whole, 500)["message"] == "a fuse blew"


async def test_a_dead_engine_is_503_everywhere(backend_of, fake):
    engine = fake()
    backend = backend_of(engine)
    engine.running.clear()
    async with asgi_client(backend) as client:
        waiting = asyncio.create_task(client.post("/v1/completions", json=COMPLETION))
        while not engine.num_generating:
            await asyncio.sleep(0.005)
        engine.die("out of smoke")
        for response in (await waiting, await client.post("/v1/completions", json=COMPLETION)):
            error = error_of(response, 503)
            assert error["code"] == "engine_dead"
            assert "out of smoke" in error["message"]
        health = await client.get("/health")
        assert health.status_code == 503
        assert health.json()["status"] == "dead"
        assert (await client.get("/metrics")).status_code == 200


async def test_keys_are_asked_for_under_v1_only(backend_of, fake):
    async with asgi_client(backend_of(fake()), api_keys={"sesame": "a", "ключ": "b"}) as client:
        for headers in (
            {},
            {"Authorization": "Bearer "},
            {"Authorization": "Bearer sesam"},
            {"Authorization": "Bearer sesame2"},
            {"Authorization": "Basic sesame"},
            {"Authorization": "sesame"},
        ):
            response = await client.get("/v1/models", headers=headers)
            assert error_of(response, 401)["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
        for key in ("sesame", "ключ"):
            headers = {"Authorization": f"Bearer {key}".encode()}
            assert (await client.get("/v1/models", headers=headers)).status_code == 200
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/metrics")).status_code == 200


async def test_bodies_have_a_limit(client):
    async def chunks():
        for _ in range(MAX_BODY_BYTES // (1 << 20) + 1):
            yield b" " * (1 << 20)

    headers = {"Content-Type": "application/json"}
    announced = await client.post(
        "/v1/completions", content=b" " * (MAX_BODY_BYTES + 1), headers=headers
    )
    chunked = await client.post("/v1/completions", content=chunks(), headers=headers)
    for response in (announced, chunked):
        assert error_of(response, 413)["code"] == "request_too_large"


async def test_a_tail_sends_people_to_a_split_client(backend_of, fake):
    engine = fake(thin=False, first_layer=1)
    async with asgi_client(backend_of(engine)) as client:
        for path, body in (("completions", COMPLETION), ("chat/completions", CHAT)):
            error = error_of(await client.post(f"/v1/{path}", json=body), 400)
            assert error["code"] == "split_client_required"
            assert "sliceserve gateway" in error["message"]
        assert (await client.get("/v1/models")).json()["data"][0]["id"] == "tiny"


async def test_a_bug_is_a_500_without_a_traceback(backend_of, fake, monkeypatch):
    backend = backend_of(fake())
    monkeypatch.setattr(type(backend.tokenizer), "encode", lambda *_: 1 / 0)
    async with asgi_client(backend) as client:
        response = await client.post("/v1/completions", json=COMPLETION)
    error = error_of(response, 500)
    assert error["code"] == "internal_error"
    assert "division" not in response.text


async def test_the_routes_describe_themselves(client):
    schema = (await client.get("/openapi.json")).json()
    assert {"/v1/completions", "/v1/chat/completions", "/health"} <= set(schema["paths"])
    assert "temperature" in schema["components"]["schemas"]["ChatCompletionRequest"]["properties"]


async def test_while_draining_only_questions_are_answered(serve, fake, eventually):
    engine = fake("Hello")
    engine.running.clear()
    served = await serve(engine)
    async with httpx.AsyncClient(base_url=served.url, timeout=30) as client:
        live = asyncio.create_task(client.post("/v1/completions", json=COMPLETION))
        await eventually(lambda: engine.num_generating == 1)
        served.shutdown.requested.set()
        while (health := await client.get("/health")).status_code == 200:
            pass
        assert (health.status_code, health.json()) == (503, {"status": "draining"})
        response = await client.post("/v1/completions", json=COMPLETION)
        assert error_of(response, 503)["code"] == "draining"
        assert (await client.get("/v1/models")).status_code == 200
        engine.running.set()
        assert (await live).json()["choices"][0]["text"] == "Hello"
        await asyncio.wait_for(served.task, 10)
