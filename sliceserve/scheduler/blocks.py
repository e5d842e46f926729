"""Blocks of the paged KV cache: who holds which, counted once."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sliceserve.scheduler.errors import SchedulerError
from sliceserve.scheduler.ordering import ByRank
from sliceserve.scheduler.request import Request


@dataclass(frozen=True, slots=True)
class Segment:
    """Layers ``[first, stop)``, which share one pool of ``num_blocks`` KV blocks."""

    first: int
    stop: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class SegmentUsage:
    segment: Segment
    num_free: int


class BlockPool:
    """Block ids ``[0, num_blocks)``, each free or referenced a number of times."""

    def __init__(self, num_blocks: int) -> None:
        self._num_references = [0] * num_blocks
        # A stack: the block given back last is likeliest to be in a cache.
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, num_blocks: int) -> list[int]:
        """Take free blocks, each with one reference. Raises SchedulerError if there are fewer."""
        if num_blocks > len(self._free):
            raise SchedulerError(
                f"{num_blocks} blocks were asked of a pool with {len(self._free)} free ones"
            )
        cut = len(self._free) - num_blocks
        taken = self._free[cut:]
        del self._free[cut:]
        for block in taken:
            self._num_references[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Add a reference to blocks in use."""
        for block in blocks:
            if self._num_references[block] == 0:
                raise SchedulerError(f"block {block} is free and cannot be shared")
            self._num_references[block] += 1

    def free(self, blocks: Iterable[int]) -> None:
        """Drop one reference of each block; one without references is free again."""
        for block in blocks:
            if self._num_references[block] == 0:
                raise SchedulerError(f"block {block} was freed twice")
            self._num_references[block] -= 1
            if self._num_references[block] == 0:
                self._free.append(block)

    def check(self, references: Counter[int]) -> None:
        """Raise SchedulerError unless every block is either free or referenced as often as
        ``references`` says."""
        if len(set(self._free)) != len(self._free):
            raise SchedulerError("a block is twice in the free list")
        for block, count in enumerate(self._num_references):
            if count != references[block]:
                raise SchedulerError(
                    f"block {block} is counted {count} times and held {references[block]} times"
                )
        num_used = sum(count > 0 for count in self._num_references)
        if num_used + len(self._free) != len(self._num_references):
            raise SchedulerError(
                f"{num_used} blocks in use and {len(self._free)} free ones do not make "
                f"{len(self._num_references)}"
            )


class BlockManager:
    """One pool of blocks per segment of layers.

    A request that enters at layer e holds blocks in each segment with ``stop`` > e, equally many
    in all of them: one for every ``block_size`` positions, the last one perhaps not full.
    """

    def __init__(self, segments: Sequence[Segment], block_size: int) -> None:
        if not segments:
            raise SchedulerError("an engine needs at least one segment of layers")
        if any(low.stop != high.first for low, high in pairwise(segments)):
            raise SchedulerError("segments must follow each other without gaps, lowest first")
        self.segments = list(segments)
        self.block_size = block_size
        self.pools = [BlockPool(segment.num_blocks) for segment in segments]
        self._stops = [segment.stop for segment in segments]
        self._holders = [ByRank() for _ in segments]
        self._capacities = [
            block_size * min(segment.num_blocks for segment in segments[i:])
            for i in range(len(segments))
        ]

    def capacity(self, entry_layer: int) -> int:
        """The most positions that a request can hold which enters there and is alone."""
        return self._capacities[self._lowest_segment(entry_layer)]

    def usage(self) -> list[SegmentUsage]:
        return [
            SegmentUsage(segment, pool.num_free)
            for segment, pool in zip(self.segments, self.pools, strict=True)
        ]

    def can_grow(self, request: Request, num_tokens: int) -> bool:
        """Whether there are free blocks for positions below ``num_tokens``."""
        num_missing = self._num_missing(request, num_tokens)
        if num_missing <= 0:
            return True
        lowest = self._lowest_segment(request.entry_layer)
        return all(pool.num_free >= num_missing for pool in self.pools[lowest:])

    def grow(self, request: Request, num_tokens: int) -> None:
        """Extend the request's block tables over positions below ``num_tokens``, in all of its
        segments. Raises SchedulerError, having changed nothing, unless ``can_grow``."""
        num_missing = self._num_missing(request, num_tokens)
        if num_missing <= 0:
            return
        if not self.can_grow(request, num_tokens):
            raise SchedulerError(f"no {num_missing} free blocks for request {request.request_id}")
        if not request.block_tables:
            request.block_tables = [[] for _ in self.segments]
        for i in range(self._lowest_segment(request.entry_layer), len(self.segments)):
            request.block_tables[i] += self.pools[i].allocate(num_missing)
            self._holders[i].add(request)

    def release(self, request: Request) -> None:
        """Give up all blocks of the request. The lists that held them are left as they are, for a
        step may still be reading them."""
        for pool, holders, table in zip(
            self.pools, self._holders, request.block_tables, strict=False
        ):
            pool.free(table)
            holders.discard(request)
        request.block_tables = []

    def find_victims(self, request: Request, num_tokens: int) -> list[Request] | None:
        """The requests of latest rank whose blocks, with the free ones, let ``request`` grow; None
        if those that come after it do not hold enough.

        Looks at no more requests than blocks are missing.
        """
        num_missing = self._num_missing(request, num_tokens)
        victims: list[Request] = []
        for i in range(self._lowest_segment(request.entry_layer), len(self.segments)):
            num_short = num_missing - self.pools[i].num_free
            num_short -= sum(len(v.block_tables[i]) for v in victims)
            for holder in self._holders[i].latest_first():
                if num_short <= 0 or holder.rank <= request.rank:
                    break
                if holder not in victims:
                    victims.append(holder)
                    num_short -= len(holder.block_tables[i])
            if num_short > 0:
                return None
        return victims

    def check(self, requests: Iterable[Request]) -> None:
        """Raise SchedulerError unless the tables of ``requests`` account for every block."""
        references: list[Counter[int]] = [Counter() for _ in self.segments]
        num_holding = [0] * len(self.segments)
        for request in requests:
            for i, table in enumerate(request.block_tables):
                references[i].update(table)
                num_holding[i] += bool(table)
                if bool(table) != (request in self._holders[i]):
                    raise SchedulerError(f"request {request.request_id} is not among the holders")
        for i, pool in enumerate(self.pools):
            pool.check(references[i])
            if len(self._holders[i]) != num_holding[i]:
                raise SchedulerError(f"segment {i} knows of holders that are gone")

    def _num_missing(self, request: Request, num_tokens: int) -> int:
        num_held = len(request.block_tables[-1]) if request.block_tables else 0
        return -(-num_tokens // self.block_size) - num_held

    def _lowest_segment(self, entry_layer: int) -> int:
        return bisect_right(self._stops, entry_layer)
