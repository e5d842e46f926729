"""From messages and tools to a prompt, and to the way in which its answer is read.

The same for every endpoint that takes messages.
"""

import asyncio
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from fastapi import Request

from sliceserve.api.answering import Job, plan_job
from sliceserve.api.backend import Backend
from sliceserve.api.errors import invalid
from sliceserve.api.guiding import wanted_guide
from sliceserve.api.protocol import GenerationRequest
from sliceserve.api.protocol.conversation import Conversation, TemplateOptions
from sliceserve.api.protocol.messages import ChatMessage
from sliceserve.api.protocol.tools import Tool
from sliceserve.api.tool_parsing import (
    FORMATS,
    Call,
    CallDelta,
    Function,
    ToolFormat,
    ToolParser,
    forced_calls,
    format_of_template,
    well_formed_calls,
    whole,
    without_template,
)
from sliceserve.engine.generation import TextChunk
from sliceserve.guides import GuideError, check, either
from sliceserve.models.chat_template import knows_role, reads
from sliceserve.models.errors import ModelError


@dataclass(frozen=True, slots=True)
class Calling:
    """How an answer may call functions: those named ``names``, written in ``form``. ``guide`` is
    what the answer must follow so that it does; None where it is free. ``special_tokens`` says
    that markers are among those, and have to be seen."""

    form: ToolFormat
    names: frozenset[str]
    guide: str | None
    special_tokens: bool


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """``calling`` is None where the answer is text alone."""

    token_ids: list[int]
    calling: Calling | None = None

    @property
    def guide(self) -> str | None:
        """What the answer must follow for its calls' sake."""
        return None if self.calling is None else self.calling.guide

    @property
    def shows_special_tokens(self) -> bool:
        """Whether ``AnswerReader`` must see them."""
        return self.calling is not None and self.calling.special_tokens


class AnswerReader:
    """Tells what one answer says from the calls that it makes."""

    def __init__(self, prompt: ChatPrompt) -> None:
        calling = prompt.calling
        self._parser = None if calling is None else ToolParser(calling.form, calling.names)

    def read(self, chunk: TextChunk) -> list[str | CallDelta]:
        """The news of the next chunk, in order."""
        if self._parser is None:
            return [chunk.text] if chunk.text else []
        news = self._parser.push(chunk.text)
        return news if chunk.finish_reason is None else news + self._parser.finish()

    def read_all(self, chunks: Sequence[TextChunk]) -> tuple[str, list[Call]]:
        """What all chunks say together, and the calls that they make."""
        return whole(news for chunk in chunks for news in self.read(chunk))

    def finish_reason(self, chunk: TextChunk) -> str | None:
        """OpenAI's word for why the answer ended with ``chunk``, if it did."""
        has_calls = self._parser is not None and self._parser.num_calls > 0
        return "tool_calls" if has_calls and chunk.finish_reason == "stop" else chunk.finish_reason


def make_prompt(
    conversation: Conversation, backend: Backend, wanted: str | None = None
) -> ChatPrompt:
    """The prompt for an answer to ``conversation``, which follows the guide ``wanted`` where it
    makes no calls. Raises ApiError for what the template refuses, and for tools that cannot be
    called as was asked. Takes milliseconds."""
    tools = conversation.callable_tools
    # A model that may not call should not be tempted.
    shown = conversation.tools if tools else None
    template = _Template.of(conversation, backend, bool(shown))
    prompt = template.render(conversation.messages, shown or [])
    if not tools:
        return ChatPrompt(prompt)
    return ChatPrompt(prompt, _calling(conversation, template.form, backend, wanted))


async def plan_chat(
    http: Request, request: GenerationRequest, conversation: Conversation, backend: Backend
) -> tuple[ChatPrompt, Job]:
    """The prompt for answers to ``conversation``, and the job that makes them as ``request`` wants
    them. Raises ApiError."""
    wanted = await wanted_guide(request)
    prompt = await asyncio.to_thread(make_prompt, conversation, backend, wanted)
    job = plan_job(
        http,
        request,
        [prompt.token_ids],
        backend,
        guide=prompt.guide or wanted,
        shows_special_tokens=prompt.shows_special_tokens,
    )
    return prompt, job


def render(
    messages: Sequence[ChatMessage], options: TemplateOptions, backend: Backend
) -> list[int]:
    """Token ids of ``messages``. Raises ApiError."""
    template = _Template.of(options, backend, bool(options.tools))
    return template.render(messages, options.tools or [])


def _calling(
    conversation: Conversation, form: ToolFormat, backend: Backend, wanted: str | None
) -> Calling:
    tools, must_call = conversation.callable_tools, conversation.must_call
    functions = [_function(tool, must_call) for tool in tools]
    parallel = conversation.may_call_several
    special = backend.tokenizer.special_ids(filter(None, (form.marker, form.end)))
    guide = None
    try:
        if must_call:
            guide = forced_calls(form, functions, special, parallel=parallel)
        elif wanted is not None:
            if not form.first + form.before:
                raise GuideError("this model writes them like any JSON, which has a form already")
            guide = either(forced_calls(form, functions, special, parallel=parallel), wanted)
        elif not parallel or any(function.strict for function in functions):
            guide = well_formed_calls(form, functions, special, parallel=parallel)
        if guide is not None:
            check(guide)
    except GuideError as error:
        raise invalid(f"calls of these tools cannot be guided: {error}", "tools") from error
    names = frozenset(function.name for function in functions)
    return Calling(form, names, guide, bool(special))


def _function(tool: Tool, must_call: bool) -> Function:
    """What its arguments are held to. Where the model is free to call, OpenAI holds it to the
    schema only of strict functions."""
    function = tool.function
    strict = bool(function.strict)
    schema: dict[str, Any] = {"type": "object"}
    if strict or must_call:
        schema |= {"properties": {}, "additionalProperties": False} | (function.parameters or {})
    return Function(function.name, schema, strict)


@dataclass(frozen=True, slots=True)
class _Template:
    """A chat template, and what it knows."""

    source: str
    options: TemplateOptions
    backend: Backend
    form: ToolFormat
    knows_tools: bool

    @classmethod
    def of(cls, options: TemplateOptions, backend: Backend, with_tools: bool) -> "_Template":
        source = options.chat_template
        if source is not None and not backend.chat.trust_request_template:
            raise invalid(
                "this server takes no chat_template from requests; start it with "
                "--trust-request-chat-template, or give it the template with --chat-template",
                "chat_template",
            )
        try:
            source = source or backend.chat.template or backend.tokenizer.chat_template(with_tools)
        except ModelError as error:
            raise invalid(str(error), "messages") from error
        name = backend.chat.tool_call_parser
        form = format_of_template(source) if name == "auto" else FORMATS[name]
        return cls(source, options, backend, form, reads(source, "tools"))

    def render(self, messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> list[int]:
        """Token ids of the prompt. Raises ApiError."""
        turns = [self._turn(message) for message in messages]
        described = [
            tool.model_dump(exclude={"function": {"strict"}}, exclude_none=True) for tool in tools
        ]
        arguments = self._arguments()
        if not self.knows_tools:
            turns = without_template(self.form, turns, described)
        elif described:
            arguments["tools"] = described
        try:
            return self.backend.tokenizer.chat_prompt(turns, **arguments)
        except ModelError as error:
            raise invalid(str(error), "messages") from error

    def _turn(self, message: ChatMessage) -> dict[str, Any]:
        """A message as templates know it."""
        fields = {"name", "tool_call_id", "reasoning_content"}
        turn = message.model_dump(include=fields, exclude_none=True)
        role: str = message.role
        if role == "developer" and not knows_role(self.source, "developer"):
            role = "system"
        if message.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": call.id or "",
                    "type": call.type,
                    "function": {
                        "name": call.function.name,
                        "arguments": _as_object(call.function.arguments),
                    },
                }
                for call in message.tool_calls
            ]
        return {"role": role, "content": message.text or "", **turn}

    def _arguments(self) -> dict[str, Any]:
        options = self.options
        given = options.chat_template_kwargs or {}
        if reserved := given.keys() & _reserved_names():
            raise invalid(
                f"chat_template_kwargs may not set {min(reserved)}, which is not the template's, "
                "or has a field of its own",
                "chat_template_kwargs",
            )
        goes_on = bool(options.continue_final_message)
        begins = options.add_generation_prompt
        return {
            **given,
            **({"documents": options.documents} if options.documents else {}),
            "chat_template": self.source,
            "continue_final_message": goes_on,
            "add_generation_prompt": not goes_on if begins is None else begins,
            "add_special_tokens": bool(options.add_special_tokens),
        }


@cache
def _reserved_names() -> frozenset[str]:
    """Arguments of whoever calls the template."""
    from transformers import PreTrainedTokenizerBase

    parameters = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    return frozenset({*parameters, "messages", "conversations", "add_special_tokens"} - {"kwargs"})


def _as_object(arguments: str) -> Any:
    """What templates expect of arguments; those that are not JSON stay as the model wrote them."""
    try:
        parsed = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments
