"""Chat templates: where they come from, and what they know."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from sliceserve.configs import ChatConfig
from sliceserve.models.errors import ModelError

_JINJA = re.compile(r"\{[{%#]")
_CODE = re.compile(r"\{[{%].*?[%}]\}", re.DOTALL)


def read_chat_template(given: str) -> str:
    """The template in a file of this name, or ``given`` itself where it is one. Raises ModelError
    for what is neither, and for a template that is not valid Jinja."""
    source = given
    if not _JINJA.search(given):
        try:
            source = Path(given).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ModelError(
                f"the chat template {given!r} is neither Jinja nor a file that can be read: {error}"
            ) from error
    # Takes seconds, and most of the package does without it.
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        # Of no conversation: this compiles it, and keeps what it has compiled.
        render_jinja_template(conversations=[], chat_template=source)
    except TemplateSyntaxError as error:
        raise ModelError(
            f"the chat template is not valid Jinja: line {error.lineno}: {error.message}"
        ) from error
    return source


def with_template_read(config: ChatConfig) -> ChatConfig:
    """``config`` with the template itself where it had the name of a file. Raises ModelError."""
    if config.template is None:
        return config
    return replace(config, template=read_chat_template(config.template))


def reads(source: str, variable: str) -> bool:
    """Whether the code of a template speaks of ``variable``."""
    return any(re.search(rf"\b{variable}\b", code) for code in _CODE.findall(source))


def knows_role(source: str, role: str) -> bool:
    return re.search(rf"['\"]{role}['\"]", source) is not None


def named_template(templates: Any, with_tools: bool) -> str | None:
    """The one of a tokenizer's templates (None, one, or several by name) for a conversation in
    which tools can be called, or not. Raises ModelError if none is meant for that."""
    if not isinstance(templates, dict):
        return templates or None
    name = "tool_use" if with_tools and "tool_use" in templates else "default"
    if name not in templates:
        raise ModelError(
            f"this model has chat templates named {', '.join(sorted(templates))}, but none named "
            f"{name}; choose one with --chat-template"
        )
    return str(templates[name])
