"""Tools for models whose chat template knows none: in words, in the messages themselves."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sliceserve.api.tool_parsing.formats import ToolFormat


def without_template(
    form: ToolFormat, turns: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """``turns`` of a chat with neither calls nor results as fields: a call is text in ``form``, a
    result is text of the user, and the system says what ``tools`` there are."""
    plain: list[dict[str, Any]] = []
    for turn in turns:
        role, content = turn["role"], turn["content"]
        if role == "tool":
            result = f"<tool_response>\n{content}\n</tool_response>"
            if plain and plain[-1].get("is_result"):
                plain[-1]["content"] += f"\n{result}"
            else:
                plain.append({"role": "user", "content": result, "is_result": True})
            continue
        if calls := turn.get("tool_calls"):
            functions = [call["function"] for call in calls]
            written = form.write([(one["name"], one["arguments"]) for one in functions])
            content = f"{content}\n{written}" if content else written
        plain.append({**turn, "content": content})
    described = [{"role": "system", "content": _description(form, tools)}] if tools else []
    if described and plain[0]["role"] in ("system", "developer"):
        first = plain.pop(0)
        described = [{**first, "content": f"{first['content']}\n\n{described[0]['content']}"}]
    hidden = ("is_result", "tool_calls")
    return [
        {key: value for key, value in turn.items() if key not in hidden}
        for turn in described + plain
    ]


def _description(form: ToolFormat, tools: Sequence[Mapping[str, Any]]) -> str:
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    example = form.write([("name of the function", {"name of an argument": "its value"})])
    return (
        "You can call functions to answer the user. These are the functions, with their arguments "
        f"as JSON Schema:\n<tools>\n{listed}\n</tools>\n\n"
        "To call one, write its name and arguments as JSON, in this form:\n"
        f"{example}\n\n"
        "What it returns will come between <tool_response> and </tool_response>. Answer in words "
        "when no function helps."
    )
