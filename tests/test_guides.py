"""What guides let through, byte for byte."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from sliceserve import guides
from sliceserve.configs import SamplingParams
from sliceserve.configs.sampling import MAX_GUIDE_CHARS

llguidance = pytest.importorskip("llguidance")

END, CALL = 256, 257
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def byte_tokens():
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(sorted(alphabet))}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>", "<|call|>"])
    return llguidance.LLTokenizer(backend.to_str(), eos_token=END)


@pytest.fixture
def accepts(byte_tokens):
    """Whether the tokens ``before`` and then a text, whole, follow a guide."""

    def accepts(guide, text, before=()):
        guides.check(guide)
        matcher = llguidance.LLMatcher(byte_tokens, guide, limits=guides.limits())
        tokens = [*before, *byte_tokens.greedy_tokenize(text)]
        assert not matcher.is_error(), matcher.get_error()
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()

    return accepts


def test_a_schema(accepts):
    guide = guides.json_schema(PERSON)
    assert accepts(guide, '{"name":"Ada","age":36}')
    assert accepts(guide, '{"name": "Ad\\n \\"x\\" é", "age": -3}')
    assert not accepts(guide, '{"name":"Ada"}')
    assert not accepts(guide, '{"name":"Ada","age":36.5}')
    assert not accepts(guide, '{"name":"Ada","age":36,"more":1}')
    assert not accepts(guide, '{"name":"Ada","age":36')


def test_whitespace_as_people_indent_and_no_more(accepts):
    guide = guides.json_schema(PERSON)
    value = {"name": "Ada", "age": 36}
    for indent in (None, 0, 2, 4):
        assert accepts(guide, json.dumps(value, indent=indent))
    assert not accepts(guide, '{"name":  "Ada", "age": 36}')
    assert not accepts(guide, '{\n\n"name": "Ada", "age": 36}')
    assert not accepts(guide, '{"name": "Ada", "age": 36}\n')
    compact = {**PERSON, "x-guidance": {"whitespace_flexible": False, "whitespace_pattern": None}}
    assert accepts(guides.json_schema(compact), '{"name":"Ada","age":36}')
    assert not accepts(guides.json_schema(compact), '{"name": "Ada","age":36}')


def test_any_object(accepts):
    assert accepts(guides.json_object(), '{"a": [1, {"b": null}], "c": "d"}')
    assert not accepts(guides.json_object(), "[1]")


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (r"[a-z]+/\d{2}", "abc/42", "abc/4"),
        (r"^a\/b$", "a/b", "aab"),
        ("one\ntwo", "one\ntwo", "one two"),
        ("(?i)yes|no", "YES", "yesno"),
        (r"a\\", "a\\", "a"),
    ],
)
def test_a_regular_expression(accepts, pattern, yes, no):
    assert accepts(guides.regex(pattern), yes)
    assert not accepts(guides.regex(pattern), no)


OPTIONS = ["yes", "no", 'a "quoted" one', "back\\slash", "two\nlines\t\x01", "é漢😀", "<x>", "/x/"]


@pytest.mark.parametrize("option", OPTIONS)
def test_a_choice(accepts, option):
    guide = guides.choice(OPTIONS)
    assert accepts(guide, option)
    assert not accepts(guide, option[:-1])
    assert not accepts(guide, option + "x")


@pytest.mark.parametrize(
    "grammar",
    [
        '// not a ::= b\nstart: "a" NUMBER ("," NUMBER)*\nNUMBER: /[0-9]+/',
        'root ::= "a" [0-9]+ ("," [0-9]+)*\n',
    ],
    ids=["lark", "gbnf"],
)
def test_a_grammar(accepts, grammar):
    guide = guides.grammar(grammar)
    assert accepts(guide, "a1,22,3")
    assert not accepts(guide, "a1,")


def test_parts_make_a_tool_call(accepts):
    calls = [
        guides.json_value({"type": "object", "properties": {"name": {"const": name}}})
        for name in ("f", "g")
    ]
    call = guides.sequence(
        guides.literal("<tool_call>\n"), guides.one_of(*calls), guides.literal("\n</tool_call>")
    )
    several = guides.repeated(call, separator=guides.literal("\n"), at_most=2)
    f, g = (f'<tool_call>\n{{"name": "{name}"}}\n</tool_call>' for name in "fg")
    assert accepts(guides.from_part(call), g)
    assert not accepts(guides.from_part(call), f"{f}\n{g}")
    assert accepts(guides.from_part(several), f"{f}\n{g}")
    assert not accepts(guides.from_part(several), f"{f}\n{g}\n{f}")
    assert accepts(guides.from_part(guides.repeated(call)), f * 3)
    assert not accepts(guides.from_part(several), f.replace('"f"', '"h"'))


def test_either_of_two(accepts):
    call = guides.sequence(guides.literal("<call>"), guides.json_value({"const": {"a": 1}}))
    guide = guides.either(guides.from_part(call), guides.json_schema(PERSON))
    assert accepts(guide, '<call>{"a": 1}')
    assert accepts(guide, '{"name": "Ada", "age": 36}')
    assert not accepts(guide, '{"a": 1}')


def test_a_special_token_is_not_its_text(accepts):
    guide = guides.from_part(
        guides.sequence(guides.special_token("<|call|>"), guides.matching("[0-9]+"))
    )
    # Whether there is such a token is for the model's tokenizer to say.
    assert "no tokenizer" in guides.check(guide)[0]
    assert accepts(guide, "12", before=[CALL])
    assert not accepts(guide, "<|call|>12")


@pytest.mark.parametrize(
    ("guide", "words"),
    [
        (guides.json_schema({"type": "objekt"}), "objekt"),
        (guides.json_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (guides.json_schema({"type": "string", "pattern": "(?=a)"}), "look-ahead"),
        (guides.json_schema({"$ref": "http://localhost/other"}), "localhost"),
        (guides.regex("(a"), "unclosed group"),
        (guides.grammar("start: foo"), 'unknown name: "foo"'),
        ("not a grammar", "Expected"),
        ("{}", "grammars"),
    ],
)
def test_what_cannot_be_followed_is_said_in_a_line(guide, words):
    with pytest.raises(guides.GuideError, match=words) as error:
        guides.check(guide)
    assert "\n" not in str(error.value)


def test_a_lenient_schema_ignores_what_it_cannot_enforce_and_tells():
    guide = guides.json_schema({"type": "array", "uniqueItems": True}, lenient=True)
    assert "uniqueItems" in guides.check(guide)[0]


def test_what_is_no_grammar_at_all():
    with pytest.raises(guides.GuideError, match="at least one"):
        guides.choice([])
    with pytest.raises(guides.GuideError, match="GBNF"):
        guides.grammar("root ::= [a-")
    with pytest.raises(guides.GuideError, match="characters"):
        guides.choice(["x" * MAX_GUIDE_CHARS])
    with pytest.raises(ValueError, match="guide"):
        SamplingParams(guide="x" * (MAX_GUIDE_CHARS + 1))
    with pytest.raises(guides.GuideError, match="x-guidance"):
        guides.json_schema({"x-guidance": 1})
    deep = {}
    for _ in range(100_000):
        deep = {"items": deep}
    with pytest.raises(guides.GuideError, match="nested"):
        guides.json_value(deep)
