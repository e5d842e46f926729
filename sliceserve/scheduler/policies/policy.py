"""What a policy decides, and first come, first served, which the others start from."""

from collections.abc import Iterator

from sliceserve.configs import SchedulerConfig
from sliceserve.scheduler.ordering import ByRank, Queue, Rotation
from sliceserve.scheduler.request import Rank, Request
from sliceserve.scheduler.step import Step

# What one level of priority, or one more request of a tenant at once, is worth in ranks: it lets
# so many later arrivals pass.
ARRIVALS_PER_LEVEL = 64


class Policy:
    """First come, first served; other policies override what they decide otherwise.

    Requests with pending tokens that are not in a step stand in one of three queues: ``decodes``
    hold blocks and have one pending token, ``prefills`` hold blocks and have more, ``waiting`` hold
    none. The policy makes these queues, and with them says who is next in each.

    A policy also gives each request its rank, once, when it arrives. Memory goes by rank alone:
    blocks are taken from the latest rank first and never for a later one. As ranks do not change
    and all differ, the first of those alive can always go on, and no two requests preempt each
    other in turn.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.decodes: Queue = Rotation()
        self.prefills: Queue = ByRank()
        self.waiting: Queue = ByRank()

    def rank(self, request: Request, arrival: int) -> Rank:
        """Called once, for the ``arrival``-th request of all. The second part is the arrival, so
        that no two are equal."""
        return (arrival, arrival)

    def longer_work(self, step: Step) -> Iterator[Request]:
        """Take out prefills and waiting requests to serve next, while ``step`` has room."""
        yield from self.prefills.take(step)
        yield from self.waiting.take(step)

    def wake(self, request: Request) -> None:
        """The request has pending tokens; it may have had some before."""

    def rest(self, request: Request) -> None:
        """The request has none, until its client sends some."""

    def forget(self, request: Request) -> None:
        """The request has ended."""

    def charge(self, request: Request, stop: int) -> None:
        """Rows of the request up to position ``stop`` were chosen for a step."""

    def check(self, requests: dict[str, Request]) -> None:
        """Raise SchedulerError unless what is noted of the live ``requests`` is right."""
