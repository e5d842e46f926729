"""What callers of the SDK give by name, for type checkers and editors."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from msgspec.structs import replace

from sliceserve.configs import CodecConfig, SamplingParams

Message = Mapping[str, Any]
# Text, token ids, or a conversation.
Prompt = str | Sequence[int] | Sequence[Message]
Stop = str | Sequence[str]


class SamplingOptions(TypedDict, total=False):
    """The fields of SamplingParams, which says what they mean."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool
    logprobs: int | None
    guide: str | None
    min_tokens: int
    logit_bias: tuple[tuple[int, float], ...] | Mapping[int, float]
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    prompt_logprobs: int | None


class CallOptions(SamplingOptions, total=False):
    """What a call takes besides its prompt; see AsyncSplitLLM.generate."""

    stop: Stop
    priority: int
    timeout_s: float | None


class ClientOptions(TypedDict, total=False):
    """What a client takes besides its server; see AsyncSplitLLM."""

    model: str | None
    split: int | None
    codec: str | CodecConfig | None
    api_key: str | None
    device: str | None
    dtype: str | None
    connect_timeout_s: float | None
    timeout_s: float | None
    resume_timeout_s: float | None
    max_retries: int | None


def chosen_sampling(base: SamplingParams | None, params: SamplingOptions) -> SamplingParams:
    """``base``, or the defaults, with ``params`` over it. Raises ValueError."""
    return replace(base or SamplingParams(), **cast("dict[str, Any]", params))
