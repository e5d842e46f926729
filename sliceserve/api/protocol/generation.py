"""What all generating endpoints accept. ``user`` is a label for the caller's own use."""

from typing import Annotated

from pydantic import Field, model_validator

from sliceserve.api.protocol.parts import Part, StopString, Text, TokenId, neutral, one_of
from sliceserve.configs import SamplingParams
from sliceserve.configs.sampling import MAX_STOP_TOKENS

MAX_CHOICES = 8
MAX_STOP_STRINGS = 16


class StreamOptions(Part):
    include_usage: bool = False
    include_obfuscation: Annotated[bool | None, neutral(False)] = None


class GenerationRequest(Part):
    """What the endpoints share."""

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

    presence_penalty: Annotated[float | None, neutral(0)] = None
    frequency_penalty: Annotated[float | None, neutral(0)] = None
    repetition_penalty: Annotated[float | None, neutral(1)] = None
    logit_bias: Annotated[dict[str, float] | None, neutral({})] = None

    @model_validator(mode="after")
    def _expect_stream(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream to be true")
        return self

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def wanted_tokens(self) -> int | None:
        """The most tokens of one answer; None is whatever fits the context."""
        raise NotImplementedError

    @property
    def wanted_logprobs(self) -> int | None:
        """Alternatives to report with each token; None reports nothing."""
        raise NotImplementedError

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
        )
