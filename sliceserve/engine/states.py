"""What a predictive codec carries from step to step: the decoded states that rows follow from."""

from collections.abc import Container, Sequence

import torch

from sliceserve.codec.base import Run
from sliceserve.scheduler.errors import SchedulerError, expect_live
from sliceserve.scheduler.plan import ScheduledRequest

State = torch.Tensor | None


class DecodedStates:
    """The last state of each request, with the position that it belongs before, and the state at
    the end of each full block, by its id in the last segment: there a request goes on that has
    taken the block from the prefix cache.

    A step counts as a whole or not at all: what its runs have become is kept by ``end_step``.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._kept: dict[str, tuple[int, State]] = {}
        self._of_blocks: dict[int, State] = {}
        self._step: list[tuple[ScheduledRequest, int, Run]] = []

    def begin_step(self) -> None:
        self._step = []

    def run(
        self, request: ScheduledRequest, start: int, num_rows: int, token_ids: Sequence[int] = ()
    ) -> Run:
        """A run of ``num_rows`` rows of ``request`` from position ``start`` on. Raises
        SchedulerError unless the state before it is known."""
        block_ends = range(-(start + 1) % self._block_size, num_rows, self._block_size)
        run = Run(num_rows, token_ids, self._before(request, start), block_ends)
        self._step.append((request, start, run))
        return run

    def end_step(self) -> None:
        for request, start, run in self._step:
            self._kept[request.request_id] = (start + run.num_rows, run.previous)
            for row, state in run.states.items():
                self._of_blocks[self._block(request, start + row)] = state

    def forget(self, request_id: str) -> None:
        self._kept.pop(request_id, None)

    def check(self, live: Container[str]) -> None:
        """Raise SchedulerError if anything is kept of requests that are not ``live``."""
        expect_live("decoded states", self._kept, live)

    def _before(self, request: ScheduledRequest, start: int) -> State:
        if start == 0:
            return None
        position, state = self._kept.get(request.request_id, (0, None))
        if position == start:
            return state
        if start % self._block_size == 0:
            block = self._block(request, start - 1)
            if block in self._of_blocks:
                return self._of_blocks[block]
        raise SchedulerError(
            f"request {request.request_id} goes on at position {start}, but the state before "
            f"position {position} is what is kept"
        )

    def _block(self, request: ScheduledRequest, position: int) -> int:
        return request.block_tables[-1][position // self._block_size]
