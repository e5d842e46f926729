"""What a call of the SDK gives back."""

import reprlib
from dataclasses import dataclass

from sliceserve.client.stats import RequestStats
from sliceserve.scheduler.plan import FinishReason, PromptLogprob, SampledToken

_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True, repr=False)
class Completion:
    """An answer. ``token_ids`` has every sampled token, an end token and those of a stop string
    included, which ``text`` leaves out. ``logprobs`` has the tokens with their logprobs, if they
    were asked for; ``prompt_logprobs`` those of the prompt, None for its first, which nothing
    stands before."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int
    stats: RequestStats
    logprobs: tuple[SampledToken, ...] | None = None
    prompt_logprobs: tuple[PromptLogprob | None, ...] | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    def __repr__(self) -> str:
        shorten = reprlib.Repr()
        shorten.maxstring = _SHOWN_CHARACTERS
        return (
            f"Completion({shorten.repr(self.text)}, {self.finish_reason}, "
            f"{self.num_prompt_tokens} + {self.num_tokens} tokens, "
            f"{self.stats.tokens_per_s:.1f} tokens/s, "
            f"{self.stats.uplink_bytes_per_token:.0f} bytes up a token)"
        )
