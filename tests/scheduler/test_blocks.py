"""Blocks are counted once, and growth is all or nothing."""

from collections import Counter

import pytest

from sliceserve.configs import SamplingParams
from sliceserve.scheduler.blocks import BlockManager, BlockPool, Segment
from sliceserve.scheduler.errors import SchedulerError
from sliceserve.scheduler.request import Request


def make_request(arrival: int, entry_layer: int = 0) -> Request:
    request = Request(
        f"r{arrival}", num_prompt=1, entry_layer=entry_layer, sampling=SamplingParams()
    )
    request.rank = (arrival, arrival)
    return request


def make_manager(*num_blocks: int) -> BlockManager:
    edges = [(0, 8), (8, 15), (15, 30)]
    segments = [Segment(*edge, n) for edge, n in zip(edges, num_blocks, strict=True)]
    return BlockManager(segments, block_size=4)


def test_pool_gives_each_block_once() -> None:
    pool = BlockPool(5)
    first, second = pool.allocate(2), pool.allocate(3)
    assert sorted(first + second) == [0, 1, 2, 3, 4]
    assert pool.num_free == 0
    pool.check(Counter(first + second))
    pool.free(first)
    assert pool.num_free == 2
    assert sorted(pool.allocate(2)) == sorted(first)


def test_pool_without_enough_blocks_gives_none() -> None:
    pool = BlockPool(3)
    with pytest.raises(SchedulerError, match="4 blocks"):
        pool.allocate(4)
    assert pool.num_free == 3
    assert pool.allocate(0) == []


def test_shared_block_is_free_after_its_last_holder() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    pool.share(blocks)
    pool.free(blocks)
    assert pool.num_free == 1
    pool.check(Counter(blocks))
    pool.free(blocks)
    assert pool.num_free == 2
    with pytest.raises(SchedulerError, match="freed twice"):
        pool.free(blocks)
    with pytest.raises(SchedulerError, match="cannot be shared"):
        pool.share(blocks)


def test_pool_check_finds_lost_and_doubly_held_blocks() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(2)
    with pytest.raises(SchedulerError, match="counted 1 times and held 0"):
        pool.check(Counter(blocks[:1]))
    with pytest.raises(SchedulerError, match="held 2 times"):
        pool.check(Counter([*blocks, blocks[0]]))


@pytest.mark.parametrize(
    ("entry_layer", "expected"),
    [(0, [2, 2, 2]), (7, [2, 2, 2]), (8, [0, 2, 2]), (14, [0, 2, 2]), (15, [0, 0, 2])],
)
def test_request_holds_blocks_from_its_entry_up(entry_layer: int, expected: list[int]) -> None:
    manager = make_manager(4, 4, 4)
    request = make_request(0, entry_layer)
    manager.grow(request, 5)
    assert [len(table) for table in request.block_tables] == expected
    assert [u.num_free for u in manager.usage()] == [4 - n for n in expected]
    manager.check([request])


@pytest.mark.parametrize(("num_tokens", "expected"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_growth_follows_the_block_size(num_tokens: int, expected: int) -> None:
    manager = make_manager(4, 4, 4)
    request = make_request(0)
    manager.grow(request, 1)
    kept = list(request.block_tables[0])
    manager.grow(request, num_tokens)
    assert len(request.block_tables[0]) == expected
    assert request.block_tables[0][:1] == kept


def test_growth_is_all_segments_or_none() -> None:
    manager = make_manager(4, 1, 4)
    request = make_request(0)
    assert manager.grow(request, 4)
    assert not manager.grow(request, 5)
    assert [len(table) for table in request.block_tables] == [1, 1, 1]
    manager.check([request])
    assert manager.grow(make_request(1, entry_layer=15), 12)


def test_capacity_is_that_of_the_smallest_pool_above_the_entry() -> None:
    manager = make_manager(2, 5, 3)
    assert [manager.capacity(layer) for layer in (0, 8, 15)] == [8, 12, 12]


def test_release_leaves_the_lists_that_a_step_may_be_reading() -> None:
    manager = make_manager(4, 4, 4)
    request = make_request(0)
    manager.grow(request, 16)
    tables = request.block_tables
    manager.release(request)
    manager.release(request)
    assert [len(table) for table in tables] == [4, 4, 4]
    assert not request.holds_blocks
    assert [u.num_free for u in manager.usage()] == [4, 4, 4]
    manager.check([])


def test_victims_are_the_latest_arrivals_that_hold_what_is_short() -> None:
    manager = make_manager(3, 8, 8)
    whole = [make_request(i) for i in range(3)]
    tail = make_request(3, entry_layer=15)
    for request in (*whole, tail):
        manager.grow(request, 4)
    # Segment 0 is short, and the tail, though later, holds nothing there.
    assert manager.find_victims(whole[0], 8) == [whole[2]]
    assert manager.find_victims(whole[0], 12) == [whole[2], whole[1]]
    assert manager.find_victims(whole[1], 12) is None
    assert manager.find_victims(whole[2], 8) is None
    assert manager.find_victims(tail, 8) == []


def test_check_finds_a_table_that_lost_a_block() -> None:
    manager = make_manager(4, 4, 4)
    request = make_request(0)
    manager.grow(request, 8)
    request.block_tables[1].pop()
    with pytest.raises(SchedulerError, match="held 0 times"):
        manager.check([request])


def test_segments_must_be_adjacent() -> None:
    with pytest.raises(SchedulerError, match="without gaps"):
        BlockManager([Segment(0, 8, 4), Segment(9, 15, 4)], 4)
    with pytest.raises(SchedulerError, match="at least one"):
        BlockManager([], 4)
