"""The ways in which models write calls, as data for one parser and one grammar."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """Calls are JSON objects, {"name": …, ``arguments``: {…}}, amid other text.

    ``marker`` says that a call, or a list of them, follows; ``end`` comes after it. Without a list,
    several calls stand between markers of their own, or are parted by one of ``separators``. With
    ``bare`` an answer that begins with such an object is a call without a marker. A template that
    has one of ``signs`` in it is for models that write so.

    The model's own layout of several calls is ``first``, then each call between ``before`` and
    ``after``, with ``between`` from one to the next, then ``last``.
    ``short_ids``: the template refuses ids of calls that have not nine letters and digits.
    """

    marker: str
    signs: tuple[str, ...]
    end: str = ""
    separators: tuple[str, ...] = ()
    bare: bool = False
    arguments: str = "arguments"
    first: str = ""
    before: str = ""
    after: str = ""
    between: str
    last: str = ""
    short_ids: bool = False

    def new_id(self) -> str:
        """An id for a call."""
        return secrets.token_hex(5)[:9] if self.short_ids else f"call_{secrets.token_hex(12)}"

    def write(self, calls: Sequence[tuple[str, Any]]) -> str:
        """Calls (name, arguments) as the model writes them."""
        objects = [
            json.dumps({"name": name, self.arguments: arguments}, ensure_ascii=False)
            for name, arguments in calls
        ]
        written = self.between.join(f"{self.before}{one}{self.after}" for one in objects)
        return f"{self.first}{written}{self.last}"


# By the names that vLLM has for them.
FORMATS = {
    "hermes": ToolFormat(
        marker="<tool_call>",
        signs=("<tool_call>",),
        end="</tool_call>",
        before="<tool_call>\n",
        after="\n</tool_call>",
        between="\n",
    ),
    "llama3_json": ToolFormat(
        marker="<|python_tag|>",
        signs=("<|python_tag|>", '"parameters": \''),
        separators=(";", ","),
        bare=True,
        arguments="parameters",
        between="; ",
    ),
    "mistral": ToolFormat(
        marker="[TOOL_CALLS]",
        signs=("[TOOL_CALLS]",),
        first="[TOOL_CALLS] [",
        between=", ",
        last="]",
        short_ids=True,
    ),
}


def format_of_template(source: str) -> ToolFormat:
    """What a chat template shows of its model's way; hermes, the most usual one, where it shows
    nothing."""
    shown = (form for form in FORMATS.values() if any(sign in source for sign in form.signs))
    return next(shown, FORMATS["hermes"])
