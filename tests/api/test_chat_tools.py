"""Functions on /v1/chat/completions, as OpenAI's own client and plain requests see them."""

import json

import pytest
from asgi_client import asgi_client

from sliceserve.engine.messages import Open


def function(name, **fields):
    return {"type": "function", "function": {"name": name, **fields}}


WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    function("get_weather", description="Weather now.", parameters=WEATHER),
    function("get_time"),
]
CALLS = (
    'Look:<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
)
HI = [{"role": "user", "content": "Hi"}]
_JSON = {"Content-Type": "application/json"}
CHAT = {"model": "tiny", "messages": HI}


@pytest.fixture
async def plain(backend_of, fake):
    async with asgi_client(backend_of(fake("ok", max_model_len=4096))) as client:
        yield client


async def test_calls_come_back_whole(serve, fake, client_of):
    client = client_of(await serve(fake(CALLS, max_model_len=4096)))
    answer = await client.chat.completions.create(**CHAT, tools=TOOLS, n=2, logprobs=True)
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Look:"
        assert [call.function.name for call in choice.message.tool_calls] == [
            "get_weather",
            "get_time",
        ]
        assert choice.message.tool_calls[0].function.arguments == '{"city": "Köln"}'
        assert len(choice.logprobs.content) == len(CALLS.encode()) + 1
    ids = {call.id for choice in answer.choices for call in choice.message.tool_calls}
    assert len(ids) == 4


async def test_an_answer_of_calls_alone_has_no_content(serve, fake, client_of):
    client = client_of(await serve(fake(CALLS.removeprefix("Look:"), max_model_len=4096)))
    answer = await client.chat.completions.create(**CHAT, tools=TOOLS)
    assert answer.choices[0].message.content is None
    assert len(answer.choices[0].message.tool_calls) == 2


@pytest.mark.parametrize("logprobs", [False, True])
async def test_calls_stream_as_openai_streams_them(serve, fake, client_of, logprobs):
    client = client_of(await serve(fake(CALLS, max_model_len=4096)))
    stream = await client.chat.completions.create(
        **CHAT,
        tools=TOOLS,
        n=2,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"logprobs": logprobs},
    )
    chunks = [chunk async for chunk in stream]
    usage = chunks.pop().usage
    for index in range(2):
        choices = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        deltas = [choice.delta for choice in choices]
        assert (deltas[0].role, deltas[0].content, deltas[0].refusal) == ("assistant", "", None)
        assert "refusal" in deltas[0].model_fields_set
        assert "".join(delta.content or "" for delta in deltas) == "Look:"
        pieces = [delta.tool_calls[0] for delta in deltas if delta.tool_calls]
        for number, name in enumerate(("get_weather", "get_time")):
            first, *others = [piece for piece in pieces if piece.index == number]
            assert first.id.startswith("call_")
            assert (first.type, first.function.name, first.function.arguments) == (
                "function",
                name,
                "",
            )
            assert all(piece.id is piece.type is piece.function.name is None for piece in others)
            arguments = "".join(piece.function.arguments for piece in others)
            assert json.loads(arguments) == ({"city": "Köln"} if number == 0 else {})
        reasons = [choice.finish_reason for choice in choices]
        assert reasons == [None] * (len(reasons) - 1) + ["tool_calls"]
        if logprobs:
            told = [c.logprobs.content for c in choices if c.logprobs]
            assert sum(map(len, told)) == len(CALLS.encode()) + 1
    assert usage.completion_tokens == 2 * (len(CALLS.encode()) + 1)


async def test_a_call_that_breaks_off_ends_with_length(serve, fake, client_of):
    client = client_of(await serve(fake(CALLS, max_model_len=4096)))
    answer = await client.chat.completions.create(**CHAT, tools=TOOLS, max_tokens=60)
    choice = answer.choices[0]
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls[0].function.arguments.startswith('{"ci')


@pytest.mark.parametrize("choice", [{}, {"tools": TOOLS, "tool_choice": "none"}])
async def test_without_tools_text_is_text(serve, fake, client_of, choice):
    engine = fake(CALLS, max_model_len=4096)
    client = client_of(await serve(engine))
    answer = await client.chat.completions.create(**CHAT, **choice)
    assert answer.choices[0].message.content == CALLS
    assert answer.choices[0].finish_reason == "stop"
    # "<s>user: Hi\nassistant: ": it is told of no functions either.
    assert engine.sent(Open)[0].num_prompt == 21


async def test_only_functions_that_may_be_called_are(serve, fake, client_of):
    client = client_of(await serve(fake(CALLS, max_model_len=4096)))
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "get_time"}}]}
    answer = await client.chat.completions.create(
        **CHAT, tools=TOOLS, tool_choice={"type": "allowed_tools", "allowed_tools": allowed}
    )
    message = answer.choices[0].message
    assert [call.function.name for call in message.tool_calls] == ["get_time"]
    assert "Köln" in message.content


@pytest.mark.parametrize(
    ("change", "has_guide"),
    [
        ({"tool_choice": "required"}, True),
        ({"tool_choice": {"type": "function", "function": {"name": "get_time"}}}, True),
        ({"tool_choice": "auto"}, False),
        ({"parallel_tool_calls": False}, True),
        ({"tools": [function("f", strict=True)]}, True),
        ({"tool_choice": "none"}, False),
    ],
)
async def test_calls_are_guided_where_something_was_promised(
    serve, fake, client_of, change, has_guide
):
    engine = fake("ok", max_model_len=4096)
    client = client_of(await serve(engine))
    await client.chat.completions.create(**{**CHAT, "tools": TOOLS, **change})
    assert (engine.sent(Open)[0].sampling.guide is not None) == has_guide


async def test_a_template_without_tools_gets_them_in_words(serve, fake, client_of, tokenizer):
    engine = fake("ok", max_model_len=4096)
    client = client_of(await serve(engine))
    call = {"id": "1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    await client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "When?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "noon"},
            {"role": "tool", "tool_call_id": "2", "content": "12:00"},
        ],
        tools=TOOLS,
    )
    text = tokenizer.decode(engine.sent(Open)[0].prompt)
    assert text.startswith("system: Be brief.\n\nYou can call functions")
    assert json.dumps(TOOLS[0]) in text
    assert text.endswith(
        'user: When?\nassistant: <tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>\n'
        "user: <tool_response>\nnoon\n</tool_response>\n"
        "<tool_response>\n12:00\n</tool_response>\nassistant: "
    )


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [function("a b")]}, "tools[0].function.name"),
        (
            {"tools": [function("a", parameters=[])]},
            "tools[0].function.parameters",
        ),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "a", "parameters": {"type": "string"}},
                    }
                ]
            },
            "tools[0].function.parameters",
        ),
        ({"tool_choice": "required"}, None),
        ({"tool_choice": "any", "tools": TOOLS}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}, "tools": TOOLS}, None),
        (
            {
                "tool_choice": "required",
                "tools": [
                    function(
                        "a",
                        strict=True,
                        parameters={"type": "object", "properties": {"x": {"type": "no"}}},
                    )
                ],
            },
            "tools",
        ),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "function", "content": "x", "name": "f"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
            "messages[0].tool_calls[0].function",
        ),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"x": "\ud800"}}, "chat_template_kwargs"),
        ({"add_generation_prompt": True, "continue_final_message": True}, None),
    ],
)
async def test_what_is_wrong_is_named(plain, change, param):
    body = json.dumps({**CHAT, **change})
    response = await plain.post("/v1/chat/completions", content=body, headers=_JSON)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert error["message"]
