"""Computed blocks that outlive their requests, for whoever begins with the same inputs."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sliceserve.scheduler.errors import SchedulerError
from sliceserve.scheduler.prefix import extend_digests
from sliceserve.scheduler.request import Request

# Tenant, entry layer, whether packets leave, codec; the digest of all inputs up to the block's end.
Key = tuple[str, int, bool, str | None, bytes]


@dataclass(eq=False, slots=True)
class CachedBlock:
    """One whole block of inputs whose rows have been computed.

    ``parent`` is the block before it, None at the beginning. ``kv_blocks`` are where its keys and
    values lie, one in each segment from ``lowest`` up. ``packets`` (heads) are what its rows left
    as; ``packet_bytes`` is the size of the packets that it keeps, as inputs or as these.
    ``num_users`` requests hold it; they hold its parents too. Without any it may be evicted;
    ``unused_since`` then orders it among those of other segments.
    """

    key: Key
    parent: "CachedBlock | None"
    inputs: list[Any]
    packets: list[bytes]
    lowest: int
    kv_blocks: list[int]
    packet_bytes: int
    num_users: int = 0
    unused_since: int = 0


class PrefixCache:
    """Finds blocks by the digest of all that comes up to their end, and compares what is in them.

    A digest that two prefixes share leads to no hit: the second of them is not kept. The least
    recently used block is evicted first, and as requests give up their last block first, never one
    before a block that follows it. Knows no pools: whoever evicts frees the blocks.
    """

    def __init__(self, num_segments: int, block_size: int) -> None:
        self._block_size = block_size
        self._blocks: dict[Key, CachedBlock] = {}
        # By the lowest segment: a block is of use to it and to all above.
        self._unused: list[OrderedDict[CachedBlock, None]] = [
            OrderedDict() for _ in range(num_segments)
        ]
        self._num_released = 0
        # Of unused blocks alone: what others keep belongs to live requests, and is counted there.
        self._packet_bytes = [0] * num_segments

    def num_unused(self, segment: int) -> int:
        """KV blocks of the segment that eviction could free."""
        return sum(map(len, self._unused[: segment + 1]))

    @property
    def packet_bytes(self) -> int:
        """Of the packets that no live request keeps."""
        return sum(self._packet_bytes)

    def following(self, request: Request) -> CachedBlock | None:
        """The cached block with the known inputs behind those blocks that the request holds."""
        start = len(request.cached_blocks) * self._block_size
        stop = start + self._block_size
        if stop > request.num_known:
            return None
        block = self._blocks.get(self._next_key(request))
        inputs, packets = request.inputs[start:stop], request.packets[start:stop]
        return block if block is not None and _is_next(block, request, inputs, packets) else None

    def keep(self, request: Request, lowest: int, kv_blocks: list[int]) -> CachedBlock | None:
        """Keep the block behind those that the request holds, all of whose rows are computed; what
        is kept already comes back in its place. None if others have its digest."""
        key = self._next_key(request)
        start = len(request.cached_blocks) * self._block_size
        stop = start + self._block_size
        inputs, packets = request.inputs[start:stop], request.packets[start:stop]
        block = self._blocks.get(key)
        if block is not None:
            return block if _is_next(block, request, inputs, packets) else None
        packet_bytes = sum(map(len, packets or (inputs if request.entry_layer > 0 else ())))
        block = CachedBlock(key, _last(request), inputs, packets, lowest, kv_blocks, packet_bytes)
        self._blocks[key] = block
        return block

    def hold(self, request: Request, block: CachedBlock) -> None:
        """The request holds the block, the one behind those that it holds."""
        if block in self._unused[block.lowest]:
            self._drop_unused(block)
        block.num_users += 1
        request.cached_blocks.append(block)

    def release(self, request: Request) -> None:
        """The request holds none any more."""
        for block in reversed(request.cached_blocks):
            block.num_users -= 1
            if block.num_users == 0:
                self._num_released += 1
                block.unused_since = self._num_released
                self._unused[block.lowest][block] = None
                self._packet_bytes[block.lowest] += block.packet_bytes
        request.cached_blocks = []

    def evict(self, segment: int) -> CachedBlock:
        """Forget the least recently used block that has KV in ``segment``, and return it. Raises
        SchedulerError if all of them are in use."""
        return self._evict(range(segment + 1))

    def evict_packets(self) -> CachedBlock:
        """The same for those that enter where packets are kept."""
        return self._evict([i for i, num_bytes in enumerate(self._packet_bytes) if num_bytes])

    def recall(self, request: Request, digests: Sequence[bytes]) -> None:
        """Let the request know the inputs that it begins with, as far as there are blocks with
        these digests and room for them before its next token."""
        parent = None
        for digest in digests[: request.num_tokens // self._block_size]:
            block = self._blocks.get(_key(request, digest))
            if block is None or block.parent is not parent:
                return
            request.inputs += block.inputs
            request.digests.append(digest)
            parent = block

    def check(self, requests: Iterable[Request]) -> list[Counter[int]]:
        """Raise SchedulerError unless each block is held as often as it says, and evictable if by
        nobody. Returns how often it holds each KV block of each segment."""
        held = Counter(block for request in requests for block in request.cached_blocks)
        references: list[Counter[int]] = [Counter() for _ in self._unused]
        for key, block in self._blocks.items():
            if block.key != key or held.pop(block, 0) != block.num_users:
                raise SchedulerError(f"a cached block counts {block.num_users} users wrongly")
            if (block in self._unused[block.lowest]) != (block.num_users == 0):
                raise SchedulerError("a cached block is evictable and in use, or neither")
            parent = block.parent
            if parent is not None and self._blocks.get(parent.key) is not parent:
                raise SchedulerError("a cached block has lost the one before it")
            for references_of, kv_block in zip(
                references[block.lowest :], block.kv_blocks, strict=True
            ):
                references_of[kv_block] += 1
        if held:
            raise SchedulerError("a request holds a block that is not cached any more")
        if sum(map(len, self._unused)) != sum(b.num_users == 0 for b in self._blocks.values()):
            raise SchedulerError("a block that was evicted is still evictable")
        for num_bytes, unused in zip(self._packet_bytes, self._unused, strict=True):
            if num_bytes != sum(block.packet_bytes for block in unused):
                raise SchedulerError(f"{num_bytes} bytes of cached packets are miscounted")
            if any(a.unused_since >= b.unused_since for a, b in pairwise(unused)):
                raise SchedulerError("unused blocks are not in the order of their last use")
        return references

    def _evict(self, lowest: Iterable[int]) -> CachedBlock:
        oldest = [next(iter(self._unused[i])) for i in lowest if self._unused[i]]
        if not oldest:
            raise SchedulerError("nothing that is cached can be evicted: all of it is in use")
        block = min(oldest, key=lambda block: block.unused_since)
        self._drop_unused(block)
        del self._blocks[block.key]
        return block

    def _drop_unused(self, block: CachedBlock) -> None:
        del self._unused[block.lowest][block]
        self._packet_bytes[block.lowest] -= block.packet_bytes

    def _next_key(self, request: Request) -> Key:
        extend_digests(request.digests, request.inputs, self._block_size)
        return _key(request, request.digests[len(request.cached_blocks)])


def _key(request: Request, digest: bytes) -> Key:
    return (request.tenant, request.entry_layer, request.is_head, request.codec, digest)


def _last(request: Request) -> CachedBlock | None:
    return request.cached_blocks[-1] if request.cached_blocks else None


def _is_next(block: CachedBlock, request: Request, inputs: list[Any], packets: list[bytes]) -> bool:
    """Whether the block follows those that the request holds, with these inputs. What a head has
    sent is final, and what it goes on with must follow from that."""
    return (
        block.parent is _last(request)
        and block.inputs == inputs
        and block.packets[: len(packets)] == packets
    )
