"""How the next token is chosen. Travels from the client to the sampler unchanged."""

from dataclasses import dataclass

from sliceserve.configs.validation import expect

MAX_STOP_TOKENS = 64
MAX_LOGPROBS = 20
MAX_GUIDE_CHARS = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling of one request. Raises ValueError, saying what was expected, when out of range.

    ``temperature`` 0 is greedy. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 switch their filters
    off. ``seed`` None draws one. ``logprobs`` is how many alternatives are reported for each
    token; None reports nothing, 0 the chosen token's alone. Generation ends at a token of
    ``stop_token_ids`` (the model's end tokens are added to them unless ``ignore_eos``), or after
    ``max_tokens``, or at the context limit. ``guide`` is a grammar that the answer follows, as
    `sliceserve.guides` makes it; the answer ends where the grammar ends, even with ``ignore_eos``.

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

    def __post_init__(self) -> None:
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
        expect(
            self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS,
            "logprobs",
            f"0 to {MAX_LOGPROBS} or none",
            self.logprobs,
        )
        expect(
            self.guide is None or len(self.guide) <= MAX_GUIDE_CHARS,
            "guide",
            f"at most {MAX_GUIDE_CHARS} characters",
            len(self.guide or ""),
        )
