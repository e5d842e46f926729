"""What /v1/completions accepts."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from sliceserve.api.protocol.generation import MAX_CHOICES, ScoredRequest
from sliceserve.api.protocol.parts import Text, TokenId, neutral, one_of
from sliceserve.api.protocol.structured import FormattedRequest
from sliceserve.configs.sampling import MAX_LOGPROBS

# OpenAI's own default for completions.
_COMPLETION_MAX_TOKENS = 16


class CompletionRequest(FormattedRequest, ScoredRequest):
    """Body of POST /v1/completions.

    A ``prompt`` of null is the token that ends a text. With ``echo`` the prompt is a part of the
    answer, and its tokens of the logprobs; then ``max_tokens`` may be 0. Of ``best_of`` answers the
    ``n`` are told whose tokens are likeliest on average. ``add_special_tokens`` is what the
    tokenizer adds to a text by itself.
    """

    OPERATION = "text_completion"

    prompt: Annotated[
        Text | list[Text] | list[TokenId] | list[list[TokenId]] | None,
        one_of("a string, a list of strings, a list of token ids, or a list of such lists"),
    ]
    max_tokens: int | None = Field(None, ge=0)
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES)
    add_special_tokens: bool = True

    suffix: Annotated[str | None, neutral("")] = None

    def expect_consistent(self) -> None:
        super().expect_consistent()
        if self.best_of is not None and self.best_of < self.num_told:
            raise ValueError(f"best_of is {self.best_of}, less than n, which is {self.num_told}")
        if self.stream and self.num_choices > self.num_told:
            raise ValueError("best_of chooses among whole answers, which cannot be streamed")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0: without echo there is nothing to answer")

    @property
    def prompts(self) -> Sequence[str | list[int] | None]:
        """One or several prompts, as text or as token ids."""
        match self.prompt:
            case None | str() | [int(), *_]:
                return [self.prompt]  # type: ignore[list-item]
            case prompts:
                return prompts  # type: ignore[return-value]

    @property
    def num_told(self) -> int:
        """Answers to be told of each prompt."""
        return super().num_choices

    @property
    def num_choices(self) -> int:
        return self.best_of or self.num_told

    @property
    def prompt_only(self) -> bool:
        return self.max_tokens == 0

    @property
    def wanted_tokens(self) -> int | None:
        # An engine makes one at least.
        return _COMPLETION_MAX_TOKENS if self.max_tokens is None else max(1, self.max_tokens)

    @property
    def wanted_logprobs(self) -> int | None:
        if self.logprobs is None and self.num_choices > self.num_told:
            return 0
        return self.logprobs

    @property
    def wanted_prompt_logprobs(self) -> int | None:
        wanted = [self.prompt_logprobs, self.logprobs if self.echo else None]
        return max((n for n in wanted if n is not None), default=None)
