"""What all generating endpoints accept. ``user`` is a label for the caller's own use."""

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from sliceserve.api.protocol.parts import (
    Biases,
    Part,
    StopString,
    Text,
    TokenId,
    needs,
    neutral,
    one_of,
)
from sliceserve.api.protocol.structured import GuidedRequest
from sliceserve.configs import SamplingParams
from sliceserve.configs.sampling import MAX_LOGPROBS, MAX_STOP_TOKENS

MAX_CHOICES = 128
MAX_STOP_STRINGS = 16


class StreamOptions(Part):
    """With ``continuous_usage_stats`` every chunk has the usage of its answer so far."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: Annotated[bool | None, neutral(False)] = None


class GenerationRequest(GuidedRequest):
    """What the endpoints share."""

    # What traces call it.
    OPERATION: ClassVar[str] = "chat"
    RULES = (needs("stream_options", [None], stream={"const": True}),)

    model: Text
    temperature: float | None = Field(None, ge=0.0, le=100.0)
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0.0, le=1.0)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = Field(None, ge=1)
    stop: Annotated[
        StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None,
        one_of(f"a string, or a list of up to {MAX_STOP_STRINGS} strings, none of them empty"),
    ] = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=MAX_STOP_TOKENS)
    ignore_eos: bool = False
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    priority: int = Field(0, ge=-(2**31), lt=2**31)

    presence_penalty: float | None = Field(None, ge=-2.0, le=2.0)
    frequency_penalty: float | None = Field(None, ge=-2.0, le=2.0)
    repetition_penalty: float | None = Field(None, gt=0.0, le=100.0)
    logit_bias: Biases | None = None
    min_tokens: int | None = Field(None, ge=0, lt=2**31)
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True

    @model_validator(mode="after")
    def _expect_stream(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream to be true")
        return self

    def expect_consistent(self) -> None:
        super().expect_consistent()
        if self.wanted_tokens is not None and (self.min_tokens or 0) > self.wanted_tokens:
            raise ValueError(
                f"min_tokens is {self.min_tokens}, more than the {self.wanted_tokens} tokens that "
                "are wanted at most"
            )

    @property
    def num_choices(self) -> int:
        """Answers to be made for each prompt."""
        return self.n or 1

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        return self.include_usage and self.stream_options.continuous_usage_stats  # type: ignore

    @property
    def prompt_only(self) -> bool:
        """Whether nothing is to be told but of the prompt."""
        return False

    @property
    def wanted_tokens(self) -> int | None:
        """The most tokens of one answer; None is whatever fits the context."""
        raise NotImplementedError

    @property
    def wanted_logprobs(self) -> int | None:
        """Alternatives to report with each token; None reports nothing."""
        raise NotImplementedError

    @property
    def wanted_prompt_logprobs(self) -> int | None:
        """The same with each token of the prompt."""
        return None

    def sampling(self, max_tokens: int, choice: int) -> SamplingParams:
        """Parameters of the ``choice``-th answer to one prompt."""
        # Negative seeds are allowed by OpenAI; the engine's are 63 bits without a sign.
        seed = None if self.seed is None else (self.seed + choice) % 2**63
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=max(0, self.top_k or 0),
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
            seed=seed,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos,
            logprobs=self.wanted_logprobs,
            min_tokens=self.min_tokens or 0,
            logit_bias=tuple(sorted((int(i), bias) for i, bias in (self.logit_bias or {}).items())),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            prompt_logprobs=self.wanted_prompt_logprobs,
        )


class ScoredRequest(GenerationRequest):
    """One whose answer can tell of the prompt's tokens too, and name tokens by their ids, as vLLM's
    can."""

    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    return_tokens_as_token_ids: bool | None = None

    def expect_consistent(self) -> None:
        super().expect_consistent()
        if self.stream and self.prompt_logprobs is not None:
            raise ValueError("prompt_logprobs are not streamed")

    @property
    def wanted_prompt_logprobs(self) -> int | None:
        return self.prompt_logprobs
