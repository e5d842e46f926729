"""What the scheduler tells of its steps and of itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from sliceserve.scheduler.blocks import SegmentUsage
from sliceserve.scheduler.plan import FinishReason, PromptLogprob, SampledToken
from sliceserve.scheduler.request import Request


class Progress(msgspec.Struct, frozen=True, gc=False):
    """What a step did for one request. ``token`` is the one at position ``start``, or the
    ``packets`` (heads) begin there; a step that only prefilled has neither. ``prompt_logprobs`` are
    those of the newest of the request's ``num_scored`` positions."""

    request: Request
    start: int
    token: SampledToken | None = None
    packets: Sequence[bytes] = ()
    prompt_logprobs: Sequence[PromptLogprob] = ()
    seconds: float = 0.0
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """``num_running`` have pending tokens and hold blocks, ``num_waiting`` have pending tokens and
    hold none; the other live requests wait for their clients. ``num_queued`` are not live yet: they
    wait to be admitted."""

    num_live: int
    num_queued: int
    num_running: int
    num_waiting: int
    num_preempted_total: int
    num_prefix_queried_tokens_total: int
    num_prefix_hit_tokens_total: int
    held_packet_bytes: int
    segments: list[SegmentUsage]
