"""Where requests may stand, as a check."""

from collections.abc import Collection

from sliceserve.scheduler.errors import SchedulerError
from sliceserve.scheduler.queues import Queues
from sliceserve.scheduler.request import Request
from sliceserve.scheduler.step import Step


def check_places(requests: Collection[Request], queues: Queues, step: Step) -> None:
    """Raise SchedulerError unless each of all live ``requests`` is in its one place, and has blocks
    for what is computed of it."""
    policy = queues.policy
    for request in requests:
        places = {
            "a step": request in step.chosen,
            "decodes": request in policy.decodes,
            "prefills": request in policy.prefills,
            "waiting": request in policy.waiting,
        }
        found = [place for place, holds in places.items() if holds]
        expected = [_place(request, places["a step"])] if request.num_pending else []
        if found != expected:
            raise SchedulerError(
                f"request {request.request_id} with {request.num_pending} pending tokens is in "
                f"{found}, expected {expected}"
            )
        if request.num_tokens != request.num_prompt + len(request.outputs):
            raise SchedulerError(f"request {request.request_id} miscounts its tokens")
        if request.num_computed > request.capacity:
            raise SchedulerError(f"request {request.request_id} lacks blocks for its KV")
        if request.queue is not None and request not in request.queue:
            raise SchedulerError(f"request {request.request_id} is not where it says")
    num_placed = queues.num_running + len(policy.waiting) + len(step.chosen)
    if num_placed != sum(request.num_pending > 0 for request in requests):
        raise SchedulerError("a request that is gone is still in a queue")


def _place(request: Request, is_in_step: bool) -> str:
    if is_in_step:
        return "a step"
    if not request.holds_blocks:
        return "waiting"
    return "decodes" if request.num_pending == 1 else "prefills"
