"""What /v1/completions accepts."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from sliceserve.api.protocol.generation import GenerationRequest
from sliceserve.api.protocol.parts import Text, TokenId, neutral, one_of
from sliceserve.configs.sampling import MAX_LOGPROBS

# OpenAI's own default for completions.
_COMPLETION_MAX_TOKENS = 16


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    prompt: Annotated[
        Text | list[Text] | list[TokenId] | list[list[TokenId]],
        one_of("a string, a list of strings, a list of token ids, or a list of such lists"),
    ]
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    echo: Annotated[bool | None, neutral(False)] = None
    best_of: Annotated[int | None, neutral(1)] = None
    suffix: Annotated[str | None, neutral("")] = None

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """One or several prompts, as text or as token ids."""
        match self.prompt:
            case str() | [int(), *_]:
                return [self.prompt]  # type: ignore[list-item]
            case prompts:
                return prompts  # type: ignore[return-value]

    @property
    def wanted_tokens(self) -> int | None:
        return _COMPLETION_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        return self.logprobs
