"""How the next token is chosen. Travels from the client to the sampler unchanged."""

from collections.abc import Mapping

import msgspec

from sliceserve.configs.validation import expect

MAX_STOP_TOKENS = 64
MAX_LOGPROBS = 20
MAX_GUIDE_CHARS = 1 << 18
MAX_BIASES = 1024


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sampling of one request. Raises ValueError, saying what was expected, when out of range.

    ``temperature`` 0 is greedy. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 switch their filters
    off. ``seed`` None draws one. ``logprobs`` is how many alternatives are reported for each
    token; None reports nothing, 0 the chosen token's alone. Generation ends at a token of
    ``stop_token_ids`` (the model's end tokens are added to them unless ``ignore_eos``), or after
    ``max_tokens``, or at the context limit; of these tokens none is chosen among the first
    ``min_tokens``. ``guide`` is a grammar that the answer follows, as `sliceserve.guides` makes it;
    the answer ends where the grammar ends, even with ``ignore_eos``.

    Before all that, logits are changed: ``logit_bias`` (pairs of token id and what is added; a
    mapping becomes such pairs), then ``repetition_penalty`` (above 1 against tokens of prompt and
    answer), then ``frequency_penalty`` for each time and ``presence_penalty`` for the first time
    that a token is in the answer. All reported logprobs are the model's own, before any of this.
    ``prompt_logprobs`` is how many alternatives are reported for each token of the prompt.

    What has its default does not travel.

    Stop strings are not here: text, and so its end, belongs to whoever turns tokens into text.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    guide: str | None = None
    min_tokens: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.logit_bias, Mapping):
            biases = tuple(sorted(self.logit_bias.items()))
            msgspec.structs.force_setattr(self, "logit_bias", biases)
        expect(self.max_tokens >= 1, "max_tokens", "at least 1", self.max_tokens)
        expect(0.0 <= self.temperature <= 100.0, "temperature", "0 to 100", self.temperature)
        expect(self.top_k >= 0, "top_k", "0 (off) or more", self.top_k)
        expect(0.0 < self.top_p <= 1.0, "top_p", "above 0 and at most 1", self.top_p)
        expect(0.0 <= self.min_p <= 1.0, "min_p", "0 to 1", self.min_p)
        expect(
            self.seed is None or 0 <= self.seed < 2**63, "seed", "0 to 2^63 - 1 or none", self.seed
        )
        expect(
            len(self.stop_token_ids) <= MAX_STOP_TOKENS,
            "stop_token_ids",
            f"at most {MAX_STOP_TOKENS} ids",
            len(self.stop_token_ids),
        )
        for name in ("logprobs", "prompt_logprobs"):
            num_top = getattr(self, name)
            expect(
                num_top is None or 0 <= num_top <= MAX_LOGPROBS,
                name,
                f"0 to {MAX_LOGPROBS} or none",
                num_top,
            )
        expect(self.min_tokens >= 0, "min_tokens", "0 or more", self.min_tokens)
        for name in ("presence_penalty", "frequency_penalty"):
            penalty = getattr(self, name)
            expect(-2.0 <= penalty <= 2.0, name, "-2 to 2", penalty)
        expect(
            0.0 < self.repetition_penalty <= 100.0,
            "repetition_penalty",
            "above 0 and at most 100",
            self.repetition_penalty,
        )
        expect(
            self.guide is None or len(self.guide) <= MAX_GUIDE_CHARS,
            "guide",
            f"at most {MAX_GUIDE_CHARS} characters",
            len(self.guide or ""),
        )
        self._check_biases()

    def _check_biases(self) -> None:
        num_tokens = len(dict(self.logit_bias))
        expect(
            num_tokens == len(self.logit_bias) <= MAX_BIASES,
            "logit_bias",
            f"at most {MAX_BIASES} token ids, each once",
            len(self.logit_bias),
        )
        for token_id, bias in self.logit_bias:
            expect(token_id >= 0, "logit_bias", "token ids from 0 on", token_id)
            expect(-100.0 <= bias <= 100.0, "logit_bias", "-100 to 100 for a token", bias)

    @property
    def penalizes(self) -> bool:
        """Whether tokens that were there before are less, or more, likely."""
        return (
            self.repetition_penalty != 1.0
            or self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
        )

    @property
    def needs_prompt(self) -> bool:
        """Whether whoever samples must know the prompt's token ids."""
        return self.repetition_penalty != 1.0 or self.prompt_logprobs is not None
