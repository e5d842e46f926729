"""Chooses the next token from logits.

Random choice is the Gumbel-max trick with noise that is a pure function of (seed, position, token
id): the text of a request does not depend on the batch it shares, and goes on unchanged after a
preemption or on another server.
"""

from collections.abc import Callable, Sequence

import torch

from sliceserve.configs import SamplingParams
from sliceserve.scheduler.plan import Logprob, SampledToken

_MASK_64 = (1 << 64) - 1


def sample(
    logits: torch.Tensor,
    params: Sequence[SamplingParams],
    positions: Sequence[int],
    adjust: Callable[[torch.Tensor], None] | None = None,
) -> list[SampledToken]:
    """One token a row of ``logits`` (num_rows, vocab) float32, which may be overwritten.

    ``positions`` are those of the tokens to be chosen. ``adjust`` changes the logits in place, once
    the logprobs to report have been read from them. A row with temperature above 0 needs a seed:
    ValueError otherwise.
    """
    logprobs = _Logprobs(logits, params)
    if adjust is not None:
        adjust(logits)
    chosen = logits.argmax(dim=-1)  # (num_rows,)
    random_rows = [i for i, p in enumerate(params) if p.temperature > 0]
    if random_rows:
        chosen[random_rows] = _sample_random(
            logits[random_rows],
            [params[i] for i in random_rows],
            [positions[i] for i in random_rows],
        )
    token_ids = chosen.tolist()
    return [logprobs.token(row, token_id) for row, token_id in enumerate(token_ids)]


def _sample_random(
    logits: torch.Tensor, params: list[SamplingParams], positions: list[int]
) -> torch.Tensor:
    """(num_rows, vocab) float32 → (num_rows,) int64."""

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=logits.device)[:, None]

    logits = logits / column([p.temperature for p in params])
    if any(p.min_p > 0 for p in params):
        # p ≥ min_p · p_max, in logarithms
        floor = logits.amax(dim=-1, keepdim=True) + column([p.min_p for p in params]).log()
        logits = logits.masked_fill(logits < floor, -torch.inf)
    if any(p.top_k > 0 or p.top_p < 1 for p in params):
        logits = _keep_top(logits, params)
    noise = torch.stack(
        [gumbel_noise(_seed(p), pos, logits) for p, pos in zip(params, positions, strict=True)]
    )
    return (logits + noise).argmax(dim=-1)


def _keep_top(logits: torch.Tensor, params: list[SamplingParams]) -> torch.Tensor:
    """Top-k, then top-p of what is left: the smallest set of tokens whose probability reaches it.
    Ties go to the lowest token id."""
    vocab_size = logits.shape[-1]
    top_k = [min(p.top_k or vocab_size, vocab_size) for p in params]
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(vocab_size, device=logits.device)
    drop = rank >= torch.tensor(top_k, device=logits.device)[:, None]
    probs = ordered.masked_fill(drop, -torch.inf).softmax(dim=-1)
    before = probs.cumsum(dim=-1) - probs
    top_p = torch.tensor([p.top_p for p in params], device=logits.device)[:, None]
    # The first token always stays; a top_p of 1 drops nothing, whatever the sum rounds to.
    drop |= (before >= top_p) & (rank > 0) & (top_p < 1)
    return torch.empty_like(logits).scatter_(-1, order, ordered.masked_fill(drop, -torch.inf))


def _seed(params: SamplingParams) -> int:
    if params.seed is None:
        raise ValueError("random sampling needs a seed; whoever opens the request draws it")
    return params.seed


def gumbel_noise(seed: int, position: int, like: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise for every token id, (vocab,) float32, on the device of ``like``.

    A counter-based generator: splitmix64's finalizer (Steele, Lea, Flood 2014) over a key made of
    seed and position, plus token id times the golden ratio. Integer arithmetic, so every device
    draws the same bits.
    """
    key = _mix_int(_mix_int(seed) + position)
    token_ids = torch.arange(like.shape[-1], dtype=torch.int64, device=like.device)
    bits = _mix(token_ids * _signed(0x9E3779B97F4A7C15) + _signed(key))
    # 23 bits and a half: the most that float32 holds without rounding up to 1.
    uniform = ((bits & 0x7FFFFF).float() + 0.5) * 2.0**-23  # (vocab,) in (0, 1)
    return -(-uniform.log()).log()


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix_int(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK_64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return x ^ (x >> 31)


def _signed(x: int) -> int:
    """The int64 with the same bits."""
    return x - (1 << 64) if x >= 1 << 63 else x


class _Logprobs:
    """Log-probabilities of the rows that asked for them, before anything changes them."""

    def __init__(self, logits: torch.Tensor, params: Sequence[SamplingParams]) -> None:
        self._num_top = [p.logprobs for p in params]
        wanted = [i for i, n in enumerate(self._num_top) if n is not None]
        self._row_of = {row: i for i, row in enumerate(wanted)}
        if not wanted:
            return
        self._values = logits[wanted].log_softmax(dim=-1)  # (num_wanted, vocab)
        most = max(n for n in self._num_top if n is not None)
        top = self._values.topk(most, dim=-1)
        self._top_ids, self._top_values = top.indices.tolist(), top.values.tolist()

    def token(self, row: int, token_id: int) -> SampledToken:
        num_top = self._num_top[row]
        if num_top is None:
            return SampledToken(token_id)
        i = self._row_of[row]
        pairs = zip(self._top_ids[i][:num_top], self._top_values[i], strict=False)
        return SampledToken(
            token_id,
            float(self._values[i, token_id]),
            tuple(Logprob(top_id, value) for top_id, value in pairs),
        )
