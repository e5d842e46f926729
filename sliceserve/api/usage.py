"""What a tenant has used of its limits, counted in this process.

A rate is one number, the time at which all that was used will have been paid back (the generic cell
rate algorithm's theoretical arrival time): what was used at once is paid back evenly. So nothing
has to be cleared as time goes on, and processes agree on it by one read and one write
(`SharedUsage`).
"""

import contextlib
from collections.abc import Iterator
from mmap import mmap
from struct import Struct

# Rates of one tenant.
NUM_RATES = 3

TIMES = Struct(f"{NUM_RATES}d")


class Usage:
    """One tenant's. Times are `time.monotonic` seconds, which all processes of a machine share."""

    def __init__(self) -> None:
        self._times: bytearray | mmap = bytearray(TIMES.size)
        self._sessions: set[int] = set()

    @contextlib.contextmanager
    def times(self) -> Iterator[list[float]]:
        """When each rate will have been paid back; what is changed in the list is kept. Nobody
        else sees or changes them meanwhile."""
        with self._alone():
            times = list(TIMES.unpack_from(self._times))
            yield times
            TIMES.pack_into(self._times, 0, *times)

    def take_session(self, most: int) -> int | None:
        """A place among ``most`` sessions, or None where all are taken."""
        for place in range(most):
            if place not in self._sessions and self._claim(place):
                self._sessions.add(place)
                return place
        return None

    def leave_session(self, place: int) -> None:
        self._sessions.discard(place)

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def _claim(self, place: int) -> bool:
        return True
