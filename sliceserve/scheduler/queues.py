"""Who goes next: the one place where the order of a step is decided."""

from collections.abc import Iterator
from itertools import chain

from sliceserve.scheduler.policies.policy import Policy
from sliceserve.scheduler.request import Request
from sliceserve.scheduler.step import Step

# The share of a step that decodes leave to longer work, every second step.
KEPT_SHARE = 4


class Queues:
    """Requests with pending tokens that are not in a step, each in one queue of the policy.

    Those without pending tokens wait for their client and are in no queue.

    A step takes decodes, then prefills and the waiting in the policy's order. While there are any
    of the latter, decodes leave them a quarter of the rows and of the requests in every second step
    (what they do not need goes back to decodes). Hence, memory permitting, with T rows and R
    requests a step, first come first served:

    - a decode with k others before it is served within 2·⌈(k + 1) / min(T, R)⌉ steps;
    - the earliest prefill, of n tokens, has at most one of them left after
      2·⌈n / max(1, ⌊T / 4⌋)⌉ steps; that one is served as a decode.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._kept_last = False

    @property
    def num_running(self) -> int:
        return len(self.policy.decodes) + len(self.policy.prefills)

    def num_needed(self, num_slots: int) -> int:
        """Rows of a step in which all decodes that have slots are served, with or without what
        they leave to others."""
        num_decodes = min(len(self.policy.decodes), num_slots)
        return num_decodes + num_decodes // (KEPT_SHARE - 1) + 1

    def push(self, request: Request) -> None:
        """Put the request, which is in no queue, where it belongs now."""
        policy = self.policy
        num_pending = len(request.inputs) - request.num_computed
        if num_pending == 0:
            policy.rest(request)
            return
        policy.wake(request)
        if request.capacity == 0:
            queue = policy.waiting
        elif num_pending == 1:
            queue = policy.decodes
        else:
            queue = policy.prefills
        queue.add(request)
        request.queue = queue

    def take(self, step: Step) -> Iterator[Request]:
        """Take out requests to serve next, while ``step`` has room. One that is put back did not
        fit: nobody passes it in its queue."""
        # As a chain, for each generator between here and there takes its time with every request.
        return chain.from_iterable(self._turns(step))

    def _turns(self, step: Step) -> Iterator[Iterator[Request]]:
        policy = self.policy
        self._kept_last = not self._kept_last and bool(policy.prefills or policy.waiting)
        if self._kept_last:
            step.keep(max(1, step.num_rows // KEPT_SHARE), max(1, step.num_slots // KEPT_SHARE))
        yield policy.decodes.take(step)
        step.keep(0, 0)
        yield policy.longer_work(step)
        yield policy.decodes.take(step)
