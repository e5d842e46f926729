"""Guides that hold a model to well-formed calls."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sliceserve import guides
from sliceserve.api.tool_parsing.formats import ToolFormat
from sliceserve.guides import Part

# A model that has lost its way could call without end.
_MAX_CALLS = 64


@dataclass(frozen=True, slots=True)
class Function:
    """A function that may be called, with arguments that are valid under ``schema``. Of a schema
    that is not ``strict`` keywords that cannot be enforced are passed over."""

    name: str
    schema: Mapping[str, Any]
    strict: bool = False


def forced_calls(
    form: ToolFormat,
    functions: Sequence[Function],
    special: Mapping[str, int],
    *,
    parallel: bool,
) -> str:
    """The answer is a call, with ``parallel`` one or several, and nothing else. ``special`` are the
    ids of markers that the tokenizer has as special tokens. Raises GuideError."""
    return guides.from_part(_calls(form, functions, special, parallel, form.first + form.before))


def well_formed_calls(
    form: ToolFormat,
    functions: Sequence[Function],
    special: Mapping[str, int],
    *,
    parallel: bool,
) -> str:
    """The answer is any text, but from a marker on it is as in ``forced_calls``. Raises
    GuideError."""
    beginning = form.first + form.before
    if not beginning:
        # Calls have no marker, but no other text may begin as they do.
        calls = _calls(form, functions, special, parallel, "")
        return guides.grammar(f"start: TEXT | {calls}\nTEXT: /([^{{\\s](.|\\n)*)?/\n")
    calls = _calls(form, functions, special, parallel, beginning.removeprefix(form.marker))
    marker = _written(form.marker, special)
    # Lazy: it ends with the first marker; a special token is never a part of text.
    talk = "talk" if form.marker in special else "talk[lazy]"
    return guides.grammar(f"start: TEXT | talk {calls}\n{talk}: TEXT {marker}\nTEXT: /(.|\\n)*/\n")


def _calls(
    form: ToolFormat,
    functions: Sequence[Function],
    special: Mapping[str, int],
    parallel: bool,
    beginning: str,
) -> Part:
    """Calls from ``beginning`` to the end of the last."""
    calls = guides.one_of(*(_call(form, function) for function in functions))
    if parallel:
        separator = _written(form.after + form.between + form.before, special)
        calls = guides.repeated(calls, separator=separator, at_most=_MAX_CALLS)
    ending = _written(form.after + form.last, special)
    return guides.sequence(*filter(None, (_written(beginning, special), calls, ending)))


def _call(form: ToolFormat, function: Function) -> Part:
    return guides.sequence(
        guides.literal(f'{{"name": "{function.name}", "{form.arguments}": '),
        guides.json_value(function.schema, lenient=not function.strict),
        guides.literal("}"),
    )


def _written(text: str, special: Mapping[str, int]) -> Part:
    """``text``, its markers as the tokens that they are; empty for no text."""
    if not special:
        return guides.literal(text) if text else Part("")
    pieces = re.split("(" + "|".join(map(re.escape, special)) + ")", text)
    parts = [
        guides.special_token(f"<[{special[piece]}]>") if piece in special else guides.literal(piece)
        for piece in pieces
        if piece
    ]
    return guides.sequence(*parts) if parts else Part("")
