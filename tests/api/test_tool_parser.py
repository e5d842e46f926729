"""Calls in a model's text: found whatever the pieces it comes in, and nothing else lost."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sliceserve.api.tool_parsing import FORMATS, CallDelta, ToolParser, format_of_template, whole

NAMES = ("get_weather", "get_time", "get")

formats = st.sampled_from(list(FORMATS.values()))
# What texts about calls are made of, so that random ones come close to calls.
fragments = st.sampled_from(
    [
        *(form.marker for form in FORMATS.values()),
        *(form.end for form in FORMATS.values()),
        '{"name": "get_weather", "arguments": {"city": "Paris"}}',
        '{"name": "get_time", "parameters": {}}',
        '{"arguments": {"a": [1, {"b": "}"}]}, "name": "get"}',
        '{"name": "unknown", "arguments": {}}',
        *'{}[]",:; \n<|t\\',
        '"name"',
        '"get',
        "<tool_",
        "[TOOL",
        "Hello",
    ]
)
texts = st.lists(fragments | st.text(max_size=3), max_size=12).map("".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
calls = st.lists(
    st.tuples(st.sampled_from(NAMES), st.dictionaries(st.text(), values, max_size=3)),
    min_size=1,
    max_size=4,
)


def news_of(form, pieces):
    parser = ToolParser(form, NAMES)
    news = [one for piece in pieces for one in parser.push(piece)]
    return news + parser.finish()


def parse(form, *pieces):
    text, found = whole(news_of(form, pieces))
    return text, [(call.name, call.arguments) for call in found]


@st.composite
def cut_texts(draw):
    text = draw(texts)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return text, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@settings(max_examples=300, deadline=None)
@given(formats, cut_texts())
def test_pieces_of_a_text_say_what_the_whole_says(form, cut):
    text, pieces = cut
    assert parse(form, *pieces) == parse(form, text) == parse(form, *text)


@settings(max_examples=300, deadline=None)
@given(formats, texts)
def test_a_text_without_calls_is_content_to_the_last_character(form, text):
    content, found = parse(form, text)
    if not found:
        assert content == text
    else:
        # Nothing is said that the model did not say, nor in another order.
        rest = iter(text)
        assert all(char in rest for char in content)


@settings(max_examples=150, deadline=None)
@given(formats, calls, st.sampled_from(["", "Let me see.", "\n", "<t"]))
def test_calls_come_back_as_they_were_written(form, written, said):
    if form.bare:
        # Without a marker, a call is one at the beginning alone.
        said = said if said.isspace() else ""
    content, found = parse(form, said + form.write(written))
    assert content == said.strip("\n")
    assert [(name, json.loads(arguments)) for name, arguments in found] == written


@given(formats, calls, st.data())
def test_a_marker_is_never_seen_in_halves(form, written, data):
    """What is said before an answer has ended is never taken back."""
    text = "Well. " + form.write(written) if not form.bare else form.write(written)
    shown = text[: data.draw(st.integers(0, len(text)))]
    parser = ToolParser(form, NAMES)
    said, _ = whole(parser.push(shown))
    assert said == "Well. "[: len(shown)] if not form.bare else said == ""


def test_a_call_streams_as_openai_streams_it():
    parser = ToolParser(FORMATS["hermes"], NAMES)
    pieces = [
        "<tool",
        '_call>\n{"name": "get',
        '_time", "argu',
        'ments": {"zo',
        'ne": 1',
        "}}\n</tool",
    ]
    news = [parser.push(piece) for piece in pieces]
    assert news[:3] == [[], [], []]
    first, fragment = news[3]
    assert (first.index, first.name, first.arguments) == (0, "get_time", "")
    assert first.id.startswith("call_")
    assert [fragment, *news[4], *news[5]] == [
        CallDelta(0, '{"zo'),
        CallDelta(0, 'ne": 1'),
        CallDelta(0, "}"),
    ]
    assert parser.push("_call>") + parser.finish() == []
    assert parser.num_calls == 1


@pytest.mark.parametrize(
    ("form", "text", "content", "found"),
    [
        # An end marker that is missing, and one that is cut off with the answer.
        ("hermes", '<tool_call>{"name": "get", "arguments": {}}', "", [("get", "{}")]),
        ("hermes", '<tool_call>{"name": "get", "arguments": {}}</tool', "", [("get", "{}")]),
        # A brace that is missing.
        ("hermes", '<tool_call>{"name": "get", "arguments": {}</tool_call>', "", [("get", "{}")]),
        # Arguments that break off with the answer, and some that are no JSON.
        ("hermes", '<tool_call>{"name": "get", "arguments": {"a', "", [("get", '{"a')]),
        ("hermes", '<tool_call>{"name": "get", "arguments": {a: 1}}', "", [("get", "{a: 1}")]),
        # A function without parameters, extra keys, keys in another order.
        ("hermes", '<tool_call>{"name": "get"}</tool_call>', "", [("get", "{}")]),
        (
            "hermes",
            '<tool_call>{"id": [1], "name": "get", "arguments": {}, "x": "}"}</tool_call>\n',
            "",
            [("get", "{}")],
        ),
        (
            "hermes",
            '<tool_call>{"arguments": {"a": 1}, "name": "get"}</tool_call>',
            "",
            [("get", '{"a": 1}')],
        ),
        # A list, as SmolLM2 writes it.
        (
            "hermes",
            '<tool_call>[{"name": "get", "arguments": {}}, {"name": "get_time", '
            '"arguments": {}}]</tool_call>',
            "",
            [("get", "{}"), ("get_time", "{}")],
        ),
        # No function of that name, no call at all, a call after all.
        (
            "hermes",
            '<tool_call>{"name": "go", "arguments": {}}</tool_call>',
            '<tool_call>{"name": "go", "arguments": {}}</tool_call>',
            [],
        ),
        ("hermes", "<tool_call> is how to call.", "<tool_call> is how to call.", []),
        ("hermes", '<tool_call> <tool_call>{"name": "get"}', "<tool_call> ", [("get", "{}")]),
        # Text around calls.
        ("hermes", 'A\n<tool_call>{"name": "get"}</tool_call>\n\nB', "A\n\n\nB", [("get", "{}")]),
        ("llama3_json", '\n{"name": "get", "parameters": {"a": 1}}', "", [("get", '{"a": 1}')]),
        (
            "llama3_json",
            '<|python_tag|>{"name": "get", "parameters": {}}; {"name": "get_time", '
            '"parameters": {}};',
            "",
            [("get", "{}"), ("get_time", "{}")],
        ),
        ("llama3_json", '{"answer": 42}', '{"answer": 42}', []),
        (
            "llama3_json",
            'So: {"name": "get", "parameters": {}}',
            'So: {"name": "get", "parameters": {}}',
            [],
        ),
        ("mistral", 'Hm.[TOOL_CALLS][{"name": "get", "arguments": {}}]', "Hm.", [("get", "{}")]),
        ("mistral", "[TOOL_CALLS] none", "[TOOL_CALLS] none", []),
    ],
)
def test_what_models_really_write(form, text, content, found):
    assert parse(FORMATS[form], text) == (content, found)


def test_a_long_answer_of_half_calls_takes_no_longer_than_its_length():
    """Each character is looked at a bounded number of times: 50,000 of them are no burden."""
    for form in FORMATS.values():
        for text in ('<tool_call>{"arguments": {"', "<tool_call> ", "<", " ", '{"arguments": {{'):
            news_of(form, [text * (50_000 // len(text))])


def test_the_template_tells_the_format():
    assert format_of_template("… <tool_call>\\n …") is FORMATS["hermes"]
    assert format_of_template("{{ '[TOOL_CALLS] ' }}") is FORMATS["mistral"]
    assert format_of_template("{{ '<|python_tag|>' }}") is FORMATS["llama3_json"]
    assert format_of_template("{{ messages }}") is FORMATS["hermes"]


def test_ids_are_those_that_the_template_takes():
    assert FORMATS["mistral"].new_id().isalnum()
    assert len(FORMATS["mistral"].new_id()) == 9
