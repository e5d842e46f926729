"""/v1/responses as OpenAI's own client sees it."""

import itertools
import json

import pydantic
import pytest
from asgi_client import asgi_client
from openai.types.responses import Response

from sliceserve.engine.messages import Cancel, Open

ASK = {"model": "tiny", "input": "Hi"}


@pytest.fixture
async def http(backend_of, fake):
    async with asgi_client(backend_of(fake("Hello"))) as client:
        yield client


def events_of(response):
    """The JSON of each event, whose name stands in front of it."""
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


async def test_an_answer_is_one_message(serve, fake, client_of):
    answer = await client_of(await serve(fake("Hello, world"))).responses.create(
        **ASK, instructions="Be kind.", metadata={"a": "b"}, temperature=0.5
    )
    assert (answer.object, answer.status, answer.output_text) == (
        "response",
        "completed",
        "Hello, world",
    )
    assert answer.id.startswith("resp_")
    assert [item.type for item in answer.output] == ["message"]
    assert answer.output[0].status == "completed"
    assert (answer.error, answer.incomplete_details) == (None, None)
    assert (answer.instructions, answer.metadata) == ("Be kind.", {"a": "b"})
    assert (answer.temperature, answer.top_p, answer.tool_choice) == (0.5, 1.0, "auto")
    assert answer.to_dict()["store"] is False
    # "<s>system: Be kind.\n<s>user: Hi\nassistant: "
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (39, 13)
    assert answer.usage.total_tokens == 52


async def test_usage_says_what_was_cached(serve, fake, client_of):
    engine = fake("Hello")
    engine.num_cached = 4
    answer = await client_of(await serve(engine)).responses.create(**ASK)
    assert answer.usage.input_tokens_details.cached_tokens == 4
    assert answer.usage.output_tokens_details.reasoning_tokens == 0


async def test_a_stream_tells_the_whole_story(http):
    events = events_of(await http.post("/v1/responses", json={**ASK, "stream": True}))
    kinds = [kind for kind, _ in itertools.groupby(event["type"] for event in events)]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    deltas = [event["delta"] for event in events if event["type"].endswith("text.delta")]
    assert "".join(deltas) == "Hello"
    first, last = events[0]["response"], events[-1]["response"]
    assert (first["status"], first["output"], first["usage"]) == ("in_progress", [], None)
    assert first["id"] == last["id"]
    assert last["output"] == [events[-2]["item"]]
    assert {event.get("item_id", last["output"][0]["id"]) for event in events} == {
        last["output"][0]["id"]
    }
    assert last["usage"]["output_tokens"] == 6


async def test_streamed_and_whole_are_the_same_response(http):
    whole = (await http.post("/v1/responses", json=ASK)).json()
    streamed = events_of(await http.post("/v1/responses", json={**ASK, "stream": True}))[-1]

    def comparable(response):
        volatile = ("id", "created_at", "completed_at")
        text = json.dumps({k: v for k, v in response.items() if k not in volatile})
        return text.replace(response["output"][0]["id"], "ID")

    assert comparable(whole) == comparable(streamed["response"])
    Response.model_validate(whole)


async def test_the_clients_own_stream_helper(serve, fake, client_of):
    client = client_of(await serve(fake("Hello")))
    async with client.responses.stream(**ASK) as stream:
        text = [event.delta async for event in stream if event.type.endswith("text.delta")]
        final = await stream.get_final_response()
    assert "".join(text) == final.output_text == "Hello"


async def test_what_is_cut_is_incomplete(serve, fake, client_of):
    client = client_of(await serve(fake("Hello")))
    answer = await client.responses.create(**ASK, max_output_tokens=3)
    assert (answer.status, answer.output_text) == ("incomplete", "Hel")
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].status == "incomplete"
    stream = await client.responses.create(**ASK, max_output_tokens=3, stream=True)
    assert [event.type async for event in stream][-1] == "response.incomplete"


async def test_an_answer_without_a_word_is_an_empty_message(serve, fake, client_of):
    client = client_of(await serve(fake("")))
    answer = await client.responses.create(**ASK)
    assert (answer.output_text, len(answer.output)) == ("", 1)
    async with client.responses.stream(**ASK) as stream:
        assert (await stream.get_final_response()).output_text == ""


async def test_items_are_the_turns_of_a_conversation(serve, fake, client_of, tokenizer):
    engine = fake("ok")
    client = client_of(await serve(engine))
    first = await client.responses.create(**ASK)
    await client.responses.create(
        model="tiny",
        instructions="Be brief.",
        input=[
            {"role": "developer", "content": "Now."},
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "a"},
                    {"type": "input_text", "text": "b"},
                ],
            },
            # An answer goes back as it came.
            *first.output,
            {"role": "user", "content": "c"},
        ],
    )
    text = tokenizer.decode(engine.sent(Open)[1].prompt)
    assert text == "system: Be brief.\nsystem: Now.\nuser: ab\nassistant: ok\nuser: c\nassistant: "


async def test_logprobs_stand_beside_the_text(serve, fake, client_of):
    client = client_of(await serve(fake("é!")))
    ask = {**ASK, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    answer = await client.responses.create(**ask)
    logprobs = answer.output[0].content[0].logprobs
    # Two halves of a character, one character, and the end token.
    assert [entry.bytes for entry in logprobs[:3]] == [[], [], [33]]
    assert [top.logprob for top in logprobs[2].top_logprobs] == [-0.5, -1.5]
    stream = await client.responses.create(**ask, stream=True)
    events = [event async for event in stream if event.type.startswith("response.output_text")]
    *deltas, done = events
    assert [entry.token for delta in deltas for entry in delta.logprobs] == [
        entry.token for entry in done.logprobs
    ]
    assert len(done.logprobs) == 4


async def test_a_failure_in_the_middle_of_a_stream_is_its_last_event(backend_of, fake):
    engine = fake("Hello")
    engine.fail_after = 2
    async with asgi_client(backend_of(engine)) as client:
        events = events_of(await client.post("/v1/responses", json={**ASK, "stream": True}))
        assert events[-1]["type"] == "response.failed"
        failed = events[-1]["response"]
        assert failed["status"] == "failed"
        assert failed["error"] == {"code": "server_error", "message": "a fuse blew"}
        assert events[-1]["sequence_number"] == len(events) - 1
        whole = await client.post("/v1/responses", json=ASK)
        assert (whole.status_code, whole.json()["error"]["message"]) == (500, "a fuse blew")


async def test_a_refusal_still_finds_a_status(backend_of, fake):
    engine = fake("Hello")
    engine.refusal = ("overloaded", "all places are taken", 3)
    async with asgi_client(backend_of(engine)) as client:
        for stream in (False, True):
            answer = await client.post("/v1/responses", json={**ASK, "stream": stream})
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")


async def test_a_client_that_goes_away_ends_its_response(serve, fake, client_of, eventually):
    engine = fake("Hello" * 20)
    engine.pause_after = 3
    client = client_of(await serve(engine))
    stream = await client.responses.create(**ASK, max_output_tokens=90, stream=True)
    assert (await anext(aiter(stream))).type == "response.created"
    await stream.close()
    await eventually(lambda: len(engine.sent(Cancel)) == 1)


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"input": []}, "input", "invalid_value"),
        ({"input": None}, "input", "invalid_type"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role", "invalid_value"),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content",
            "invalid_type",
        ),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "invalid_value"),
        ({"input": [7]}, "input[0]", "invalid_value"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"previous_response_id": "r"}, "previous_response_id", "unsupported_parameter"),
        ({"conversation": "c"}, "conversation", "unsupported_parameter"),
        ({"prompt": {"id": "p"}}, "prompt", "unsupported_parameter"),
        ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort", "unsupported_parameter"),
        ({"include": ["everything"]}, "include[0]", "invalid_value"),
        ({"top_logprobs": 3}, None, "invalid_value"),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"max_tokens": 5}, "max_tokens", "unsupported_parameter"),
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"wisdom": 1}, "wisdom", "unknown_parameter"),
    ],
)
async def test_what_cannot_be_done_is_named(http, change, param, code):
    response = await http.post("/v1/responses", json={**ASK, **change})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code), error


async def test_what_changes_nothing_is_fine(http):
    harmless = {
        "store": False,
        "background": False,
        "truncation": "disabled",
        "include": ["reasoning.encrypted_content"],
        "reasoning": {"effort": None},
        "previous_response_id": None,
        "parallel_tool_calls": True,
        "service_tier": "auto",
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tools": [],
        "tool_choice": "auto",
        "user": "u",
        "prompt_cache_key": "k",
        "stream_options": None,
        "seed": 4,
        "stop": ["zzz"],
    }
    assert (await http.post("/v1/responses", json={**ASK, **harmless})).status_code == 200


LOOK = {
    "type": "function",
    "name": "look",
    "description": "Looks at a place.",
    "parameters": {
        "type": "object",
        "properties": {"place": {"type": "string"}},
        "required": ["place"],
        "additionalProperties": False,
    },
    "strict": False,
}
CALLS = (
    'Wait. <tool_call>\n{"name": "look", "arguments": {"place": "here"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "look", "arguments": {"place": "there"}}\n</tool_call>'
)


async def test_calls_are_items_of_their_own(serve, fake, client_of):
    client = client_of(await serve(fake(CALLS, max_model_len=4000)))
    answer = await client.responses.create(**ASK, tools=[LOOK])
    message, first, second = answer.output
    assert message.content[0].text.strip() == "Wait."
    assert [(call.type, call.name, call.status) for call in (first, second)] == [
        ("function_call", "look", "completed")
    ] * 2
    assert [json.loads(call.arguments) for call in (first, second)] == [
        {"place": "here"},
        {"place": "there"},
    ]
    assert len({first.call_id, second.call_id, first.id, second.id}) == 4
    assert answer.tools[0].name == "look"
    assert answer.status == "completed"


async def test_calls_are_streamed_piece_by_piece(serve, fake, client_of):
    client = client_of(await serve(fake(CALLS, max_model_len=4000)))
    stream = await client.responses.create(**ASK, tools=[LOOK], stream=True)
    events = [event async for event in stream]
    added = [event for event in events if event.type == "response.output_item.added"]
    assert [(event.output_index, event.item.type) for event in added] == [
        (0, "message"),
        (1, "function_call"),
        (2, "function_call"),
    ]
    pieces = [e for e in events if e.type == "response.function_call_arguments.delta"]
    assert len(pieces) > 2
    done = [e for e in events if e.type == "response.function_call_arguments.done"]
    for index, event in enumerate(done, start=1):
        mine = "".join(e.delta for e in pieces if e.output_index == index)
        assert mine == event.arguments
        assert {e.item_id for e in pieces if e.output_index == index} == {event.item_id}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    async with client.responses.stream(**ASK, tools=[LOOK]) as helper:
        final = await helper.get_final_response()
    assert [item.type for item in final.output] == ["message", "function_call", "function_call"]


async def test_what_functions_answered_goes_back(serve, fake, client_of, tokenizer):
    engine = fake(CALLS, max_model_len=4000)
    client = client_of(await serve(engine))
    conversation = [{"role": "user", "content": "Look"}]
    first = await client.responses.create(model="tiny", input=conversation, tools=[LOOK])
    conversation += first.output
    for item in first.output:
        if item.type == "function_call":
            answer = {"type": "function_call_output", "call_id": item.call_id, "output": "a door"}
            conversation.append(answer)
    await client.responses.create(model="tiny", input=conversation, tools=[LOOK])
    text = tokenizer.decode(engine.sent(Open)[1].prompt)
    assert text.count("a door") == 2
    # The calls belong to the turn that was begun with words.
    assert text.count("assistant: ") == 2
    assert text.index("Wait.") < text.index('"here"') < text.index("a door")


async def test_a_call_that_is_cut_is_incomplete(serve, fake, client_of):
    client = client_of(await serve(fake(CALLS, max_model_len=4000)))
    answer = await client.responses.create(**ASK, tools=[LOOK], max_output_tokens=70)
    assert answer.status == "incomplete"
    assert answer.output[-1].type == "function_call"
    assert answer.output[-1].status == "incomplete"


async def test_a_choice_of_tools_guides_the_answer(http, backend_of, fake):
    engine = fake("Hello", max_model_len=4000)
    async with asgi_client(backend_of(engine)) as client:
        for choice in (
            "required",
            {"type": "function", "name": "look"},
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "look"}],
            },
        ):
            body = {**ASK, "tools": [LOOK], "tool_choice": choice}
            answer = (await client.post("/v1/responses", json=body)).json()
            assert answer["tool_choice"] == choice
            assert "look" in engine.sent(Open)[-1].sampling.guide
    for change in (
        {"tool_choice": "required"},
        {"tools": [LOOK], "tool_choice": {"type": "function", "name": "listen"}},
    ):
        refused = await http.post("/v1/responses", json={**ASK, **change})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tool_choice")
    hosted = await http.post("/v1/responses", json={**ASK, "tools": [{"type": "web_search"}]})
    assert hosted.json()["error"]["code"] == "unsupported_parameter"


async def test_a_format_guides_the_text(backend_of, fake):
    engine = fake("{}", max_model_len=4000)
    async with asgi_client(backend_of(engine)) as client:
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
        form = {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}
        for given in (form, {"type": "json_object"}):
            body = {**ASK, "text": {"format": given}}
            answer = (await client.post("/v1/responses", json=body)).json()
            assert answer["text"]["format"] == given
            assert engine.sent(Open)[-1].sampling.guide is not None
        await client.post("/v1/responses", json={**ASK, "text": {"format": {"type": "text"}}})
        assert engine.sent(Open)[-1].sampling.guide is None
        broken = {**ASK, "text": {"format": {"type": "json_schema", "name": "x"}}}
        assert (await client.post("/v1/responses", json=broken)).status_code == 400


async def test_the_clients_parse_helper(serve, make_engine, client_of):
    class Answer(pydantic.BaseModel):
        number: int

    client = client_of(await serve(await make_engine()))
    answer = await client.responses.parse(
        **ASK, text_format=Answer, temperature=0, max_output_tokens=60
    )
    # A random model may count on and on; what it has said so far is a number all the same.
    assert answer.output_text.startswith("{")
    if answer.status == "completed":
        assert isinstance(answer.output_parsed, Answer)
