"""Answers in a form that the request asks for, as OpenAI's own client asks."""

import json
import re

import openai
import pytest

from sliceserve import guides
from sliceserve.client import AsyncSplitLLM
from sliceserve.engine.messages import Open

pytest.importorskip("llguidance")
validate = pytest.importorskip("jsonschema").validate

SCHEMA = {
    "type": "object",
    "properties": {
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["circle", "square"]},
    },
    "required": ["size", "kind"],
    "additionalProperties": False,
}
LOOSE = {"type": "array", "items": {"type": "boolean"}, "maxItems": 2, "uniqueItems": True}
CHOICES = ["yes", "no", "perhaps"]
MESSAGES = [{"role": "user", "content": "Hi"}]


def fits_schema(text):
    validate(json.loads(text), SCHEMA)


def fits_regex(text):
    assert re.fullmatch("[ab]{3}", text)


def fits_choice(text):
    assert text in CHOICES


def named(schema, **options):
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, **options}}


WISHES = [
    ({"response_format": named(SCHEMA, strict=True)}, fits_schema),
    ({"structured_outputs": {"json": SCHEMA}}, fits_schema),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, fits_schema),
    ({"structured_outputs": {"regex": "[ab]{3}"}}, fits_regex),
    ({"structured_outputs": {"choice": CHOICES}}, fits_choice),
    ({"structured_outputs": {"grammar": 'root ::= "yes" | "no"'}}, fits_choice),
    ({"guided_json": SCHEMA}, fits_schema),
    ({"guided_regex": "[ab]{3}"}, fits_regex),
    ({"guided_choice": CHOICES}, fits_choice),
    ({"guided_grammar": 'start: "yes" | "no"'}, fits_choice),
]


async def chat(client, stream=False, **wish):
    """The content of an answer, and why it ended."""
    answer = await client.chat.completions.create(
        model="tiny", messages=MESSAGES, seed=4, max_tokens=60, stream=stream, extra_body=wish
    )
    if not stream:
        return answer.choices[0].message.content, answer.choices[0].finish_reason
    choices = [chunk.choices[0] async for chunk in answer]
    return "".join(c.delta.content or "" for c in choices), choices[-1].finish_reason


async def test_answers_have_the_form_that_was_asked_for(serve, make_engine, client_of):
    client = client_of(await serve(await make_engine()))
    for i, (wish, fits) in enumerate(WISHES):
        text, reason = await chat(client, stream=i % 2 == 0, **wish)
        fits(text)
        assert reason == "stop"
        completion = await client.completions.create(
            model="tiny", prompt="a", max_tokens=90, extra_body=wish
        )
        fits(completion.choices[0].text)


async def test_json_objects_begin_as_such(serve, make_engine, client_of):
    client = client_of(await serve(await make_engine()))
    text, reason = await chat(client, response_format={"type": "json_object"}, ignore_eos=True)
    # A random model seldom comes to the end of an object by itself.
    assert text.startswith("{") and (reason == "length" or json.loads(text) is not None)


async def test_parsing_into_a_model_of_pydantic(serve, make_engine, client_of):
    from pydantic import BaseModel, Field

    class Shape(BaseModel):
        sides: int = Field(ge=0, le=9)
        is_round: bool

    client = client_of(await serve(await make_engine()))
    answer = await client.chat.completions.parse(
        model="tiny", messages=MESSAGES, max_tokens=90, response_format=Shape
    )
    assert isinstance(answer.choices[0].message.parsed, Shape)


async def test_a_split_client_says_the_same(serve, make_engine, model_path):
    served = await serve(await make_engine())
    guide = guides.json_schema(SCHEMA)
    llm = AsyncSplitLLM(
        served.url, model=str(model_path), codec="float32", dtype="float32", device="cpu", split=3
    )
    async with llm:
        split = await llm.generate("Hi", guide=guide, max_tokens=90, temperature=1.0, seed=9)
        fits_schema(split.text)
        with pytest.raises(Exception, match="objekt"):
            await llm.generate("Hi", guide=guides.json_schema({"type": "objekt"}))
        again = await llm.generate("Hi", guide=guide, max_tokens=90, temperature=1.0, seed=9)
        assert again.token_ids == split.token_ids


@pytest.mark.parametrize(
    ("wish", "param", "words"),
    [
        ({"response_format": named({"type": "objekt"}, strict=True)}, "response_format", "objekt"),
        ({"response_format": named(LOOSE, strict=True)}, "response_format", "uniqueItems"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
        ({"structured_outputs": {}}, "structured_outputs", "one of json"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs", "one of json"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs", "not valid JSON"),
        ({"structured_outputs": {"json": "[]"}}, "structured_outputs", "JSON object"),
        ({"structured_outputs": {"json": 5}}, "structured_outputs.json", "JSON schema"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "at least 1"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs", "unclosed group"),
        ({"guided_regex": "(?=a)"}, "guided_regex", "look-ahead"),
        ({"guided_grammar": "start: foo"}, "guided_grammar", "unknown name"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_regex", "exclude each other"),
    ],
)
async def test_what_cannot_be_followed_is_a_400_that_names_it(
    serve, fake, client_of, wish, param, words
):
    client = client_of(await serve(fake()))
    for call in (
        client.chat.completions.create(model="tiny", messages=MESSAGES, extra_body=wish),
        client.completions.create(model="tiny", prompt="a", extra_body=wish),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            await call
        assert refused.value.param == param
        assert words in refused.value.message


@pytest.mark.parametrize(
    ("wish", "guide"),
    [
        (
            {"response_format": named(LOOSE)},
            guides.json_schema(LOOSE, lenient=True),
        ),
        ({"response_format": {"type": "json_object"}}, guides.json_object()),
        (
            {"structured_outputs": {"json": SCHEMA, "whitespace_pattern": " *"}},
            guides.json_schema({"x-guidance": {"whitespace_pattern": " *"}, **SCHEMA}),
        ),
        (
            {"guided_json": SCHEMA, "guided_whitespace_pattern": "\t"},
            guides.json_schema({"x-guidance": {"whitespace_pattern": "\t"}, **SCHEMA}),
        ),
        ({"response_format": {"type": "text"}}, None),
    ],
)
async def test_the_guide_that_the_engine_is_given(serve, fake, client_of, wish, guide):
    engine = fake()
    client = client_of(await serve(engine))
    await client.chat.completions.create(model="tiny", messages=MESSAGES, extra_body=wish)
    given = engine.sent(Open)[0].sampling.guide
    assert (given and json.loads(given)) == (guide and json.loads(guide))


TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "strict": True,
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
    },
}


async def test_where_tools_may_be_called_the_answer_is_a_call_or_has_the_form(
    serve, fake, client_of
):
    engine = fake(max_model_len=4096)
    client = client_of(await serve(engine))

    async def guide_of(**wish):
        await client.chat.completions.create(
            model="tiny", messages=MESSAGES, response_format={"type": "json_object"}, **wish
        )
        return engine.sent(Open)[-1].sampling.guide

    free = await guide_of()
    assert free == guides.json_object()
    assert await guide_of(tools=[TOOL], tool_choice="none") == free
    forced = await guide_of(tools=[TOOL], tool_choice="required")
    assert await guide_of(tools=[TOOL]) == guides.either(forced, free)
