"""What /v1/completions and /v1/chat/completions accept.

Fields are checked strictly: no unknown names, no strings for numbers. A parameter that OpenAI has
and this server has not is accepted at the value at which it does nothing, and refused otherwise, so
that nobody believes in a penalty or a tool that was never applied. ``user`` and ``metadata`` are
labels for the caller's own use; nothing is stored, so ``store`` may not be true.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from sliceserve.configs import SamplingParams
from sliceserve.configs.sampling import MAX_LOGPROBS, MAX_STOP_TOKENS

MAX_CHOICES = 8
MAX_STOP_STRINGS = 16
# OpenAI's own default for completions.
_COMPLETION_MAX_TOKENS = 16


def _neutral(*values: Any) -> AfterValidator:
    """Accept only what changes nothing."""

    def check(value: Any) -> Any:
        if value is None or any(value == neutral for neutral in values):
            return value
        raise PydanticCustomError(
            "unsupported_parameter",
            "This parameter is not supported by this server; leave it out or send {neutral}.",
            {"neutral": " or ".join(repr(v).lower() for v in values) or "null"},
        )

    return AfterValidator(check)


def _one_of(sentence: str) -> WrapValidator:
    """One sentence for a union's failure, instead of one for each of its branches."""

    def check(value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            raise PydanticCustomError("union_type", "expected {s}", {"s": sentence}) from error

    return WrapValidator(check)


def _expect_unicode(text: str) -> str:
    # JSON can spell half of a surrogate pair, which no tokenizer and no answer can hold.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("not valid Unicode: it has half of a surrogate pair") from error
    return text


Text = Annotated[str, AfterValidator(_expect_unicode)]
TokenId = Annotated[int, Field(ge=0)]
StopString = Annotated[Text, Field(min_length=1)]


class _Part(BaseModel):
    """Base of everything in a request."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Part):
    include_usage: bool = False
    include_obfuscation: Annotated[bool | None, _neutral(False)] = None


class ResponseFormat(_Part):
    type: Annotated[str, _neutral("text")] = "text"


class GenerationRequest(_Part):
    """What both endpoints share."""

    model: Text
    temperature: float | None = Field(None, ge=0.0, le=100.0)
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0.0, le=1.0)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = Field(None, ge=1)
    stop: Annotated[
        StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None,
        _one_of(f"a string, or a list of up to {MAX_STOP_STRINGS} strings, none of them empty"),
    ] = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=MAX_STOP_TOKENS)
    ignore_eos: bool = False
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    priority: int = Field(0, ge=-(2**31), lt=2**31)

    presence_penalty: Annotated[float | None, _neutral(0)] = None
    frequency_penalty: Annotated[float | None, _neutral(0)] = None
    repetition_penalty: Annotated[float | None, _neutral(1)] = None
    logit_bias: Annotated[dict[str, float] | None, _neutral({})] = None

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


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    prompt: Annotated[
        Text | list[Text] | list[TokenId] | list[list[TokenId]],
        _one_of("a string, a list of strings, a list of token ids, or a list of such lists"),
    ]
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    echo: Annotated[bool | None, _neutral(False)] = None
    best_of: Annotated[int | None, _neutral(1)] = None
    suffix: Annotated[str | None, _neutral("")] = None

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


class TextPart(_Part):
    type: Literal["text"]
    text: Text


class ChatMessage(_Part):
    """One turn. The fields after ``tool_call_id`` come back when a client sends an answer of the
    API again as a part of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        Text | list[TextPart],
        _one_of('a string, or a list of parts {"type": "text", "text": string}'),
    ]
    name: Text | None = None
    tool_call_id: Text | None = None

    tool_calls: Annotated[list[Any] | None, _neutral([])] = None
    function_call: Annotated[Any, _neutral()] = None
    refusal: Annotated[str | None, _neutral()] = None
    annotations: Annotated[list[Any] | None, _neutral([])] = None
    audio: Annotated[Any, _neutral()] = None

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
    store: Annotated[bool | None, _neutral(False)] = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any] | None, _neutral([])] = None
    tool_choice: Annotated[Any, _neutral("none", "auto")] = None
    parallel_tool_calls: bool | None = None
    modalities: Annotated[list[str] | None, _neutral(["text"])] = None
    service_tier: Annotated[str | None, _neutral("auto", "default")] = None

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
