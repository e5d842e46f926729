"""A step while it is being filled."""

from operator import attrgetter

from sliceserve.scheduler.plan import ScheduledRequest, StepPlan
from sliceserve.scheduler.request import Request

_entry_layer = attrgetter("entry_layer")


class Step:
    """Rows and requests still free in a step, and what has been chosen for it.

    ``size`` is its rows when it was empty.
    """

    def __init__(self, num_rows: int, num_slots: int) -> None:
        self.size = num_rows
        self.num_rows = num_rows
        self.num_slots = num_slots
        self.chosen: dict[Request, ScheduledRequest] = {}
        self._kept_rows = self._kept_slots = 0

    @property
    def has_room(self) -> bool:
        return self.num_rows > 0 and self.num_slots > 0

    def keep(self, num_rows: int, num_slots: int) -> None:
        """Withhold so much of what is free from those who are being chosen now, and no more what
        was withheld before."""
        self.num_rows += self._kept_rows - num_rows
        self.num_slots += self._kept_slots - num_slots
        self._kept_rows = num_rows
        self._kept_slots = num_slots

    def choose(self, request: Request) -> int:
        """Give the request as many rows as it can use and there are; the position they stop at."""
        start = request.num_computed
        inputs = request.inputs[start : start + self.num_rows]
        stop = start + len(inputs)
        # A replay passes positions whose token is known, and samples none of them again.
        samples = stop == request.num_tokens and not request.is_head
        # By place, which takes half the time of names.
        self.chosen[request] = ScheduledRequest(
            request.request_id,
            request.entry_layer,
            start,
            inputs,
            request.block_tables,
            request.sampling if samples else None,
            len(request.packets),
            request.codec,
            request.scoring(stop) if request.num_scored < request.num_to_score else None,
            request.prompt,
            request.outputs,
        )
        self.num_rows -= len(inputs)
        self.num_slots -= 1
        return stop

    def drop(self, request: Request) -> None:
        """Give back what the request had, if it was chosen."""
        if (scheduled := self.chosen.pop(request, None)) is not None:
            self.num_rows += scheduled.num_tokens
            self.num_slots += 1

    def end(self) -> dict[Request, ScheduledRequest]:
        """What has been chosen; the step holds nobody any more."""
        chosen, self.chosen = self.chosen, {}
        return chosen

    def plan(self) -> StepPlan:
        """What has been chosen."""
        return StepPlan(sorted(self.chosen.values(), key=_entry_layer))
