"""What crosses between the scheduler and the runner: ints, lists and bytes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from sliceserve.configs import SamplingParams

FinishReason = Literal["stop", "length", "error"]


class Scoring(msgspec.Struct, frozen=True, gc=False):
    """Rows whose logits score tokens of the prompt: row ``first + i`` of the request's stands
    before ``targets[i]``. ``num_top`` alternatives are wanted with each."""

    first: int
    targets: Sequence[int]
    num_top: int


class ScheduledRequest(msgspec.Struct, frozen=True, gc=False):
    """One request's part of a step: rows for positions ``[start, start + len(inputs))``.

    ``inputs`` are token ids where ``entry_layer`` is 0, else packets (one per token).
    ``block_tables[i]`` are the block ids that the request holds in the engine's segment i, empty
    for segments wholly below its entry layer; they cover every position up to the last row's.
    They are the scheduler's own lists: read them during the step, do not change or keep them.
    ``sampling`` is set when the last row's logits choose the next token (its position is
    ``start + len(inputs)``), else None. ``num_emitted`` (heads only): positions below it have
    been encoded and sent already, and their packets are not wanted again. ``codec`` is the wire id
    that the packets in ``inputs`` are coded under; the scheduler passes it on unread.
    ``scoring`` is set when rows score the prompt. ``prompt`` and ``outputs``, the scheduler's own
    lists too, are the token ids before the next one: of the prompt where ``sampling`` needs it,
    else none, and those sampled so far.
    """

    request_id: str
    entry_layer: int
    start: int
    inputs: "list[int] | list[bytes]"
    block_tables: list[list[int]]
    sampling: SamplingParams | None = None
    num_emitted: int = 0
    codec: str | None = None
    scoring: Scoring | None = None
    prompt: Sequence[int] = ()
    outputs: list[int] = []

    @property
    def num_tokens(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One forward pass. ``requests`` are sorted by entry layer, lowest first, so that the rows
    that are active at any layer are a prefix of the batch."""

    requests: list[ScheduledRequest]

    @property
    def num_tokens(self) -> int:
        return sum(request.num_tokens for request in self.requests)


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token and the natural logarithm of its probability before biases, penalties, temperature
    and filters."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A chosen token. ``logprob`` and ``top`` are set when the request asked for logprobs."""

    token_id: int
    logprob: float | None = None
    top: tuple[Logprob, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptLogprob:
    """A token of the prompt, as the model saw it come: its logprob, its ``rank`` in the vocabulary
    (1 is the likeliest), and the likeliest tokens there."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[Logprob, ...] = ()


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a pass produced, by request id. ``sampled``: the token chosen after the last row (whole
    and tail engines). ``scored``: one for each of ``Scoring.targets``. ``packets``: encoded rows
    from ``max(start, num_emitted)`` on (heads). ``seconds``: each request's share of the pass's
    busy time. ``exit_seconds``: how much of the pass came after the last layer, to sample or to
    encode."""

    sampled: dict[str, SampledToken] = field(default_factory=dict)
    scored: dict[str, list[PromptLogprob]] = field(default_factory=dict)
    packets: dict[str, list[bytes]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    exit_seconds: float = 0.0
