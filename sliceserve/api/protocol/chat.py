"""What /v1/chat/completions accepts. ``metadata`` is a label for the caller's own use; nothing is
stored, so ``store`` may not be true."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sliceserve.api.protocol.generation import GenerationRequest
from sliceserve.api.protocol.parts import Part, Text, neutral, one_of
from sliceserve.configs.sampling import MAX_LOGPROBS


class ResponseFormat(Part):
    type: Annotated[str, neutral("text")] = "text"


class TextPart(Part):
    type: Literal["text"]
    text: Text


class ChatMessage(Part):
    """One turn. The fields after ``tool_call_id`` come back when a client sends an answer of the
    API again as a part of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        Text | list[TextPart],
        one_of('a string, or a list of parts {"type": "text", "text": string}'),
    ]
    name: Text | None = None
    tool_call_id: Text | None = None

    tool_calls: Annotated[list[Any] | None, neutral([])] = None
    function_call: Annotated[Any, neutral()] = None
    refusal: Annotated[str | None, neutral()] = None
    annotations: Annotated[list[Any] | None, neutral([])] = None
    audio: Annotated[Any, neutral()] = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatCompletionRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    metadata: dict[str, str] | None = None
    store: Annotated[bool | None, neutral(False)] = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any] | None, neutral([])] = None
    tool_choice: Annotated[Any, neutral("none", "auto")] = None
    parallel_tool_calls: bool | None = None
    modalities: Annotated[list[str] | None, neutral(["text"])] = None
    service_tier: Annotated[str | None, neutral("auto", "default")] = None

    @model_validator(mode="after")
    def _expect_logprobs(self) -> "ChatCompletionRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None
