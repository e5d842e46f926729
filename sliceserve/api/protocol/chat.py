"""What /v1/chat/completions accepts. ``metadata`` is a label for the caller's own use; nothing is
stored, so ``store`` may not be true."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from sliceserve.api.protocol.conversation import Conversation
from sliceserve.api.protocol.generation import ScoredRequest
from sliceserve.api.protocol.parts import needs, neutral, replaced_by
from sliceserve.api.protocol.structured import FormattedRequest
from sliceserve.configs.sampling import MAX_LOGPROBS


class ChatCompletionRequest(Conversation, FormattedRequest, ScoredRequest):
    """Body of POST /v1/chat/completions."""

    RULES = (needs("top_logprobs", [None, 0], logprobs={"const": True}),)

    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    metadata: dict[str, str] | None = None
    store: Annotated[bool | None, neutral(False)] = None
    functions: Annotated[Any, replaced_by("tools")] = None
    function_call: Annotated[Any, replaced_by("tool_choice")] = None
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
