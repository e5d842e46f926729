"""Blocks of the paged KV cache: who holds which, counted once."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sliceserve.scheduler.errors import SchedulerError
from sliceserve.scheduler.ordering import ByRank
from sliceserve.scheduler.prefix_cache import CachedBlock, PrefixCache
from sliceserve.scheduler.request import Request


@dataclass(frozen=True, slots=True)
class Segment:
    """Layers ``[first, stop)``, which share one pool of ``num_blocks`` KV blocks."""

    first: int
    stop: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class SegmentUsage:
    """``num_free`` blocks can be had, ``num_cached`` of them by evicting what they hold."""

    segment: Segment
    num_free: int
    num_cached: int


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

    With ``prefix_cache`` full blocks are kept when their requests let go of them, and given to
    others that begin with the same inputs. A cached block that nobody holds counts as free, and
    ``max_packet_bytes`` bounds the packets that such blocks keep.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        block_size: int,
        prefix_cache: bool = True,
        max_packet_bytes: int = 1 << 30,
    ) -> None:
        if not segments:
            raise SchedulerError("an engine needs at least one segment of layers")
        if any(low.stop != high.first for low, high in pairwise(segments)):
            raise SchedulerError("segments must follow each other without gaps, lowest first")
        self.segments = list(segments)
        self.block_size = block_size
        self.pools = [BlockPool(segment.num_blocks) for segment in segments]
        self._stops = [segment.stop for segment in segments]
        self._holders = [ByRank() for _ in segments]
        self._cache = PrefixCache(len(segments), block_size) if prefix_cache else None
        self._max_packet_bytes = max_packet_bytes
        self._capacities = [
            block_size * min(segment.num_blocks for segment in segments[i:])
            for i in range(len(segments))
        ]

    def capacity(self, entry_layer: int) -> int:
        """The most positions that a request can hold which enters there and is alone."""
        return self._capacities[self._lowest_segment(entry_layer)]

    def passed(self, entry_layer: int) -> range:
        """The segments, by number, that a request which enters there passes through."""
        return range(self._lowest_segment(entry_layer), len(self.segments))

    def usage(self) -> list[SegmentUsage]:
        return [
            SegmentUsage(segment, self._num_available(i), self._num_evictable(i))
            for i, segment in enumerate(self.segments)
        ]

    @property
    def cached_packet_bytes(self) -> int:
        """Of packets that are kept in cached blocks that nobody holds."""
        return 0 if self._cache is None else self._cache.packet_bytes

    def grow(self, request: Request, num_tokens: int) -> bool:
        """Extend the request's block tables over positions below ``num_tokens``, in all of its
        segments. False, having changed nothing, if there are not enough free blocks."""
        if num_tokens <= request.capacity:
            return True
        num_missing = self._num_missing(request, num_tokens)
        grown = range(self._lowest_segment(request.entry_layer), len(self.pools))
        for i in grown:
            # Mostly there are free ones, and nobody needs to ask what could be evicted.
            if self.pools[i].num_free < num_missing and self._num_available(i) < num_missing:
                return False
        tables = self._tables(request)
        for i in grown:
            if self.pools[i].num_free < num_missing:
                self._evict(i, num_missing)
            tables[i] += self.pools[i].allocate(num_missing)
        request.capacity += num_missing * self.block_size
        return True

    def recall(self, request: Request, digests: Sequence[bytes]) -> None:
        """See ``PrefixCache.recall``."""
        if self._cache is not None:
            self._cache.recall(request, digests)

    def adopt(self, request: Request, num_tokens: int) -> None:
        """If the next of the request's known inputs are cached, take their blocks for computed, as
        far as they end at or before position ``num_tokens``."""
        while self._cache is not None and request.num_computed + self.block_size <= num_tokens:
            at_cached_end = request.num_computed == len(request.cached_blocks) * self.block_size
            block = self._cache.following(request) if at_cached_end else None
            if block is None:
                return
            request.packets += block.packets[request.num_emitted - request.num_computed :]
            request.num_computed += self.block_size
            self._take(request, block)

    def store(self, request: Request, stop: int) -> None:
        """Cache what is full of the request's blocks, as far as they end behind position ``stop``.
        A block that another request has cached meanwhile is taken in the place of its own."""
        while (
            self._cache is not None
            and stop < (end := (len(request.cached_blocks) + 1) * self.block_size)
            and end <= request.num_computed
        ):
            lowest = self._lowest_segment(request.entry_layer)
            k = len(request.cached_blocks)
            kv_blocks = [table[k] for table in request.block_tables[lowest:]]
            block = self._cache.keep(request, lowest, kv_blocks)
            if block is None:
                return
            if block.kv_blocks is kv_blocks:
                self._share(block)
                self._cache.hold(request, block)
            else:  # Another request's.
                self._take(request, block)

    def release(self, request: Request) -> None:
        """Give up all blocks of the request. The lists that held them are left as they are, for a
        step may still be reading them."""
        if self._cache is not None:
            self._cache.release(request)
            while self._cache.packet_bytes > self._max_packet_bytes:
                self._free(self._cache.evict_packets())
        for pool, holders, table in zip(
            self.pools, self._holders, request.block_tables, strict=False
        ):
            pool.free(table)
            holders.discard(request)
        request.block_tables = []
        request.capacity = 0

    def find_victims(self, request: Request, num_tokens: int) -> list[Request] | None:
        """The requests of latest rank whose blocks, with the free ones, let ``request`` grow; None
        if those that come after it do not hold enough.

        Looks at no more requests than blocks are missing, and those whose blocks others hold too.
        """
        num_missing = self._num_missing(request, num_tokens)
        victims = _Victims(len(self.segments))
        for i in range(self._lowest_segment(request.entry_layer), len(self.segments)):
            num_short = num_missing - self._num_available(i)
            for holder in self._holders[i].latest_first():
                if victims.num_freed[i] >= num_short or holder.rank <= request.rank:
                    break
                victims.add(holder)
            if victims.num_freed[i] < num_short:
                return None
        return list(victims.requests)

    def check(self, requests: Iterable[Request]) -> None:
        """Raise SchedulerError unless the tables of ``requests`` and the prefix cache account for
        every block."""
        requests = list(requests)
        references: list[Counter[int]] = [Counter() for _ in self.segments]
        if self._cache is not None:
            references = self._cache.check(requests)
        num_holding = [0] * len(self.segments)
        for request in requests:
            for i, table in enumerate(request.block_tables):
                references[i].update(table)
                num_holding[i] += bool(table)
                if bool(table) != (request in self._holders[i]):
                    raise SchedulerError(f"request {request.request_id} is not among the holders")
            # Every request passes through the last segment.
            num_held = len(request.block_tables[-1]) if request.block_tables else 0
            if request.capacity != num_held * self.block_size:
                raise SchedulerError(f"request {request.request_id} miscounts its room")
            for k, block in enumerate(request.cached_blocks):
                if [table[k] for table in request.block_tables[block.lowest :]] != block.kv_blocks:
                    raise SchedulerError(f"request {request.request_id} holds other blocks")
        for i, pool in enumerate(self.pools):
            pool.check(references[i])
            if len(self._holders[i]) != num_holding[i]:
                raise SchedulerError(f"segment {i} knows of holders that are gone")

    def _num_available(self, segment: int) -> int:
        return self.pools[segment].num_free + self._num_evictable(segment)

    def _num_evictable(self, segment: int) -> int:
        return 0 if self._cache is None else self._cache.num_unused(segment)

    def _evict(self, segment: int, num_blocks: int) -> None:
        """Evict until ``num_blocks`` of the segment are free."""
        while self._cache is not None and self.pools[segment].num_free < num_blocks:
            self._free(self._cache.evict(segment))

    def _free(self, block: CachedBlock) -> None:
        for pool, kv_block in zip(self.pools[block.lowest :], block.kv_blocks, strict=True):
            pool.free([kv_block])

    def _take(self, request: Request, block: CachedBlock) -> None:
        """Let the request hold a cached block, in the place of one of its own if it has that."""
        assert self._cache is not None
        k = len(request.cached_blocks)
        self._share(block)
        self._cache.hold(request, block)
        tables = self._tables(request)
        for i, kv_block in enumerate(block.kv_blocks, block.lowest):
            if k < len(tables[i]):
                self.pools[i].free([tables[i][k]])
            tables[i][k : k + 1] = [kv_block]
        request.capacity = max(request.capacity, (k + 1) * self.block_size)

    def _share(self, block: CachedBlock) -> None:
        for pool, kv_block in zip(self.pools[block.lowest :], block.kv_blocks, strict=True):
            pool.share([kv_block])

    def _tables(self, request: Request) -> list[list[int]]:
        """The block tables of a request that is about to hold blocks."""
        if not request.block_tables:
            request.block_tables = [[] for _ in self.segments]
            for i in range(self._lowest_segment(request.entry_layer), len(self.segments)):
                self._holders[i].add(request)
        return request.block_tables

    def _num_missing(self, request: Request, num_tokens: int) -> int:
        return -(-(num_tokens - request.capacity) // self.block_size)

    def _lowest_segment(self, entry_layer: int) -> int:
        return bisect_right(self._stops, entry_layer)


class _Victims:
    """Requests that may be preempted, and how many blocks of each segment that would free."""

    def __init__(self, num_segments: int) -> None:
        self.requests: dict[Request, None] = {}
        self.num_freed = [0] * num_segments
        self._num_users: Counter[CachedBlock] = Counter()

    def add(self, request: Request) -> None:
        if request in self.requests:
            return
        self.requests[request] = None
        self._num_users.update(request.cached_blocks)
        num_freed = sum(self._num_users[b] == b.num_users for b in request.cached_blocks)
        for i, table in enumerate(request.block_tables):
            if table:
                self.num_freed[i] += len(table) - len(request.cached_blocks) + num_freed
