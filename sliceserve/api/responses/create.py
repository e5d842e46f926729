"""From a request to its answer."""

from typing import Any

from fastapi import Request
from pydantic import ValidationError
from starlette.responses import Response

from sliceserve.api.answering import answer
from sliceserve.api.backend import Backend
from sliceserve.api.conversation import plan_chat
from sliceserve.api.errors import invalid
from sliceserve.api.metrics import Metrics
from sliceserve.api.protocol import ResponsesRequest
from sliceserve.api.protocol.conversation import Conversation
from sliceserve.api.protocol.messages import ChatMessage
from sliceserve.api.protocol.responses import (
    FunctionCallItem,
    FunctionOutputItem,
    InputItem,
    text_of,
)
from sliceserve.api.responses.format import ResponseFormat


async def create_response(
    http: Request, request: ResponsesRequest, backend: Backend, metrics: Metrics
) -> Response:
    """Answer a conversation. Raises ApiError."""
    backend.expect_to_generate(request)
    prompt, job = await plan_chat(http, request, _conversation(request), backend)
    form = ResponseFormat(request, prompt, backend)
    return await answer(http, job, form, backend, metrics)


def _conversation(request: ResponsesRequest) -> Conversation:
    """What is asked, as /v1/chat/completions knows it. Raises ApiError."""
    turns: list[dict[str, Any]] = []
    if request.instructions is not None:
        turns.append({"role": "system", "content": request.instructions})
    for item in request.input:
        _add_turn(item, turns)
    choice = request.tool_choice
    try:
        conversation = Conversation(
            messages=[ChatMessage(**turn) for turn in turns],
            tools=[tool.of_chat for tool in request.tools or ()] or None,
            tool_choice=choice if choice is None or isinstance(choice, str) else choice.of_chat,
            parallel_tool_calls=request.parallel_tool_calls,
        )
        conversation.expect_consistent()
    except ValueError as error:
        raise invalid(_reason(error), "tool_choice") from error
    return conversation


def _add_turn(item: InputItem, turns: list[dict[str, Any]]) -> None:
    """Calls belong to the turn of the assistant that made them, be it words or other calls."""
    if isinstance(item, FunctionOutputItem):
        turns.append(
            {"role": "tool", "tool_call_id": item.call_id, "content": text_of(item.output)}
        )
    elif isinstance(item, FunctionCallItem):
        if not turns or turns[-1]["role"] != "assistant":
            turns.append({"role": "assistant", "content": None})
        function = {"name": item.name, "arguments": item.arguments}
        turns[-1].setdefault("tool_calls", []).append({"id": item.call_id, "function": function})
    else:
        turns.append({"role": item.role, "content": text_of(item.content)})


def _reason(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        return error.errors()[0]["msg"].removeprefix("Value error, ")
    return str(error)
