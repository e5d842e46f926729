"""From a request to its answer."""

import asyncio

from fastapi import Request
from starlette.responses import Response

from sliceserve.api.answering import answer, plan_job
from sliceserve.api.backend import Backend
from sliceserve.api.conversation import make_prompt
from sliceserve.api.errors import invalid
from sliceserve.api.guiding import wanted_guide
from sliceserve.api.metrics import Metrics
from sliceserve.api.protocol import ResponsesRequest
from sliceserve.api.protocol.conversation import Conversation
from sliceserve.api.protocol.messages import ChatMessage
from sliceserve.api.protocol.responses import InputItem, MessageItem, text_of
from sliceserve.api.responses.format import ResponseFormat


async def create_response(
    http: Request, request: ResponsesRequest, backend: Backend, metrics: Metrics
) -> Response:
    """Answer a conversation. Raises ApiError."""
    backend.expect_model(request.model)
    backend.expect_generator()
    conversation = Conversation(messages=_messages(request))
    prompt = await asyncio.to_thread(make_prompt, conversation, backend)
    guide = await wanted_guide(request)
    job = plan_job(http, request, [prompt.token_ids], backend, guide=guide)
    return await answer(http, job, ResponseFormat(request, backend), backend, metrics)


def _messages(request: ResponsesRequest) -> list[ChatMessage]:
    """The conversation as /v1/chat/completions knows it."""
    messages = []
    if request.instructions is not None:
        messages.append(ChatMessage(role="system", content=request.instructions))
    for item in request.input:
        messages.append(_message(item))
    return messages


def _message(item: InputItem) -> ChatMessage:
    if not isinstance(item, MessageItem):
        raise invalid("functions are not supported by this server", "input", "unsupported_item")
    return ChatMessage(role=item.role, content=text_of(item.content))
