"""A step while it is being filled."""

from sliceserve.scheduler.request import Request


class Step:
    """Rows and requests still free in a step, and what has been chosen for it.

    ``size`` is its rows when it was empty.
    """

    def __init__(self, num_rows: int, num_slots: int) -> None:
        self.size = num_rows
        self.num_rows = num_rows
        self.num_slots = num_slots
        self.chosen: dict[str, tuple[Request, int]] = {}
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
        """Give the request as many rows as it can use and there are; how many those were."""
        num_rows = len(request.inputs) - request.num_computed
        if num_rows > self.num_rows:
            num_rows = self.num_rows
        self.chosen[request.request_id] = (request, num_rows)
        self.num_rows -= num_rows
        self.num_slots -= 1
        return num_rows

    def drop(self, request: Request) -> None:
        """Give back what the request had, if it was chosen."""
        if (choice := self.chosen.pop(request.request_id, None)) is not None:
            self.num_rows += choice[1]
            self.num_slots += 1
