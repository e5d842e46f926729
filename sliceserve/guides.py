"""Guides: grammars that an answer must follow, for ``SamplingParams.guide``.

    SamplingParams(guide=guides.json_schema({"type": "object", ...}))
    SamplingParams(guide=guides.choice(["yes", "no"]))

A guide is a grammar in llguidance's serialised form, JSON text. To make one from several pieces,
put `Part`s together and call `from_part`:

    call = guides.sequence(
        guides.literal("<tool_call>\\n"),
        guides.json_value(schema),
        guides.literal("\\n</tool_call>"),
    )
    guide = guides.from_part(guides.repeated(call, separator=guides.literal("\\n")))

Making a guide needs no torch, and says nothing about whether it can be followed: `check` does.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NewType

from sliceserve.configs.sampling import MAX_GUIDE_CHARS

if TYPE_CHECKING:
    from llguidance import LLParserLimits

Schema = Mapping[str, Any]
# An expression in llguidance's variant of Lark.
Part = NewType("Part", str)

# A space, or a line break and its indentation: JSON as models write it, on one line or on many. A
# model that has lost its way could fill the whole answer with more.
_JSON_WHITESPACE = r" |\n {0,32}"
# Some 1 to 2 kB each. Work is bounded by llguidance's own limits: half a second to compile, and
# tens of milliseconds for a token, are the worst that was found.
_MAX_LEXER_STATES = 50_000


class GuideError(ValueError):
    """A guide that cannot be followed; the message says why."""


def json_schema(schema: Schema, *, lenient: bool = False) -> str:
    """JSON that is valid under ``schema``. Keywords that cannot be enforced make the guide
    invalid; ``lenient`` ignores them."""
    return _serialise({"json_schema": _with_options(schema, lenient)})


def json_object() -> str:
    """Any JSON object."""
    return json_schema({"type": "object"})


def regex(pattern: str) -> str:
    """Text that ``pattern`` matches as a whole: Rust's syntax, which has no look-around."""
    return from_part(matching(pattern))


def choice(options: Sequence[str]) -> str:
    """One of ``options``. Raises GuideError if there are none."""
    return from_part(one_of(*map(literal, options)))


def grammar(text: str) -> str:
    """Text of a context-free grammar: Lark as llguidance reads it, or GBNF as llama.cpp does.
    Raises GuideError for what is neither."""
    if re.search(r"(?m)^\s*[\w-]+\s*::=", text):
        converter = load_llguidance().gbnf_to_lark
        try:
            text = converter.any_to_lark(text)
        except converter.GbnfToLarkError as error:
            raise GuideError(f"cannot read the grammar as GBNF: {error}") from error
    return _serialise({"lark_grammar": text})


def either(*guides: str) -> str:
    """Text of any one guide. They must part at their first character."""
    definitions = []
    for i, guide in enumerate(guides):
        (definition,) = json.loads(guide)["grammars"]
        definitions.append({**definition, "name": f"guide{i}"})
    start = " | ".join(f"@{definition['name']}" for definition in definitions)
    return _serialise({"lark_grammar": f"start: {start}"}, *definitions)


def from_part(part: Part) -> str:
    """Text of ``part`` and nothing else."""
    return _serialise({"lark_grammar": f"start: {part}"})


def literal(text: str) -> Part:
    """This text."""
    return Part('"' + "".join(map(_escaped, text)) + '"')


def special_token(name: str) -> Part:
    """The special token that the tokenizer calls ``name``, like ``<|python_tag|>``."""
    return Part(name)


def matching(pattern: str) -> Part:
    """Text that the regular expression matches, as `regex` has it."""
    # It stands between slashes, on one line.
    return Part("/" + re.sub(r"(?s)\\.|/|\n", _escaped_in_regex, pattern) + "/")


def json_value(schema: Schema, *, lenient: bool = False) -> Part:
    """JSON as `json_schema` has it."""
    return Part(f"%json {_dumps(_with_options(schema, lenient))}")


def sequence(*parts: Part) -> Part:
    """One part after the other."""
    return Part(f"({' '.join(parts)})")


def one_of(*parts: Part) -> Part:
    """Any one part. Raises GuideError if there are none."""
    if not parts:
        raise GuideError("there is nothing to choose from; give at least one option")
    return Part(f"({' | '.join(parts)})")


def repeated(part: Part, *, separator: Part | None = None, at_most: int | None = None) -> Part:
    """``part`` once or more often, up to ``at_most`` times, with ``separator`` in between."""
    most = "" if at_most is None else at_most - 1
    following = part if separator is None else sequence(separator, part)
    return Part(f"({part} ({following}){{0,{most}}})")


def check(guide: str) -> list[str]:
    """Warnings about ``guide``, as of keywords that a lenient schema ignores. Raises GuideError if
    it cannot be followed. Takes milliseconds, large ones longer."""
    matcher = load_llguidance().LLMatcher
    is_error, messages = matcher.validate_grammar_with_warnings(guide, limits=limits())
    if is_error:
        raise GuideError(one_line(messages[0]))
    return [one_line(message) for message in messages]


def limits() -> "LLParserLimits":
    """What a guide may cost whoever compiles and follows it."""
    chosen: LLParserLimits = load_llguidance().LLParserLimits(
        max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False
    )
    return chosen


def one_line(message: str) -> str:
    """llguidance's words without the picture of the place, and the state of its parser."""
    words = re.split(r"\n +\d+ \||\n<state>", message, maxsplit=1)[0]
    return " ".join(words.split())


def load_llguidance() -> Any:
    """The package, whose import waits for the first guide. Raises GuideError without it."""
    try:
        import llguidance
        import llguidance.gbnf_to_lark
    except ImportError as error:
        raise GuideError(
            "guided answers need llguidance, which is missing here; pip install llguidance"
        ) from error
    return llguidance


def _serialise(*definitions: dict[str, Any]) -> str:
    guide = _dumps({"grammars": definitions})
    if len(guide) > MAX_GUIDE_CHARS:
        raise GuideError(
            f"the grammar has {len(guide)} characters, more than the {MAX_GUIDE_CHARS} allowed"
        )
    return guide


def _dumps(value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(value)
    except RecursionError as error:
        raise GuideError("the schema is nested too deeply") from error


def _with_options(schema: Schema, lenient: bool) -> dict[str, Any]:
    """``schema`` with llguidance's options; those that it brings itself stay."""
    options = {"whitespace_pattern": _JSON_WHITESPACE, "lenient": lenient}
    own = schema.get("x-guidance", {})
    if not isinstance(own, Mapping):
        raise GuideError(f"x-guidance must be an object, got {own!r}")
    return {**schema, "x-guidance": {**options, **own}}


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return f"\\x{ord(character):02x}" if character < " " else character


def _escaped_in_regex(match: re.Match[str]) -> str:
    return {"/": r"\/", "\n": r"\n", "\\\n": r"\n"}.get(match[0], match[0])
