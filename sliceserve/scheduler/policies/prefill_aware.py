"""Short prompts are not held up by long ones."""

from collections.abc import Iterator

from sliceserve.configs import SchedulerConfig
from sliceserve.scheduler.ordering import ByRank, Queue
from sliceserve.scheduler.policies.policy import Policy
from sliceserve.scheduler.request import Request
from sliceserve.scheduler.step import Step

# Steps in which long prefills may be passed over before they go first.
PATIENCE = 3


class PrefillAware(Policy):
    """Short and long prefills in queues of their own, the short ones first (after PLA-Serve, arXiv
    2601.11589).

    Long is what has more than ``long_prefill_tokens`` to compute before its next token. Beside
    others, long ones fill at most ``long_prefill_share`` of a step, which so stays short for
    decodes and for the short ones that come during it; alone, they fill it. After ``PATIENCE``
    steps without a row they go first in a step, and if none of them fits in memory then, no waiting
    request passes them. Hence, memory permitting, with T rows a step and a share of s, the earliest
    long prefill, of n tokens, is no longer long after
    (PATIENCE + 2)·⌈n / max(1, min(⌊T / 4⌋, ⌊s·T⌋))⌉ steps, and then the earliest of the short.

    Short ones are not held back to fill a batch: no row here is padded, what comes during a step is
    batched in the next one, and waiting longer would leave the engine idle.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        super().__init__(config)
        self._threshold = config.long_prefill_tokens
        self._long_share = config.long_prefill_share
        self.prefills = self._held = _ByLength(self._threshold)
        self.waiting = self._new = _ByLength(self._threshold)
        self._num_passed = 0

    def longer_work(self, step: Step) -> Iterator[Request]:
        has_long = self._held.long or self._new.long
        self._num_passed = self._num_passed + 1 if has_long else 0
        if self._num_passed <= PATIENCE:
            yield from self._held.short.take(step)
            yield from self._new.short.take(step)
            yield from self._long_work(step)
            return
        yield from self._long_work(step)
        yield from self._held.short.take(step)
        if self._num_passed == 0:
            yield from self._new.short.take(step)

    def _long_work(self, step: Step) -> Iterator[Request]:
        if step.chosen or self.decodes or self._held.short or self._new.short:
            most = max(1, int(self._long_share * step.size))
            step.keep(max(0, step.num_rows - most), 0)
        yield from self._held.long.take(step)
        yield from self._new.long.take(step)
        step.keep(0, 0)

    def charge(self, request: Request, stop: int) -> None:
        if _length(request) > self._threshold:
            self._num_passed = 0


class _ByLength(Queue):
    """By rank, the short before the long."""

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self.short = ByRank()
        self.long = ByRank()

    def __len__(self) -> int:
        return len(self.short) + len(self.long)

    def __contains__(self, request: Request) -> bool:
        return request in self.short or request in self.long

    def add(self, request: Request) -> None:
        (self.long if _length(request) > self._threshold else self.short).add(request)

    def remove(self, request: Request) -> None:
        if not self.short.discard(request):
            self.long.remove(request)

    def first(self) -> Request | None:
        return self.short.first() or self.long.first()


def _length(request: Request) -> int:
    """Tokens to compute before the next one, those that are still under way included."""
    return max(request.num_prompt, request.num_known) - request.num_computed
