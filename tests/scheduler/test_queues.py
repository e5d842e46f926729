"""The order of a step: rotation, arrival, and what each side leaves the other."""

import random
import sys
from typing import get_args

import pytest
from scheduler_harness import Harness

from sliceserve.configs import SamplingParams
from sliceserve.configs.engine import PolicyName
from sliceserve.scheduler.ordering import ByRank, Rotation
from sliceserve.scheduler.request import Request
from sliceserve.scheduler.step import Step


def make_request(arrival: int) -> Request:
    request = Request(f"r{arrival}", num_prompt=1, prompt=[1], sampling=SamplingParams())
    request.rank = (arrival, arrival)
    return request


def test_by_rank_sorts_whatever_the_order_of_adding() -> None:
    requests = [make_request(i) for i in range(50)]
    shuffled = random.Random(0).sample(requests, 50)
    queue = ByRank()
    for request in (*shuffled, *shuffled):
        queue.add(request)
    assert list(queue.latest_first()) == requests[::-1]
    for request in requests[::2]:
        assert queue.discard(request)
        assert not queue.discard(request)
        assert request not in queue
    assert queue.first() is requests[1]
    assert len(queue) == 25


def test_a_rotation_is_a_list_whose_first_is_next() -> None:
    rng = random.Random(0)
    requests = [make_request(i) for i in range(12)]
    queue, expected = Rotation(), list[Request]()
    for _ in range(3000):
        request = rng.choice(requests)
        if request not in expected:
            queue.add(request)
            expected.append(request)
        elif rng.random() < 0.6:
            queue.remove(request)
            expected.remove(request)
        else:
            num_rows = rng.randrange(5)
            step, taken = Step(num_rows, 64), []
            for served in queue.take(step):
                step.num_rows -= 1
                taken.append(served)
            assert taken == expected[:num_rows]
            del expected[:num_rows]
        assert len(queue) == len(expected)
        assert [one in queue for one in requests] == [one in expected for one in requests]
        if rng.random() < 0.5:
            assert queue.first() is (expected[0] if expected else None)


def test_a_rotation_keeps_nothing_of_those_that_left() -> None:
    """Whoever else has left, and is still to be skipped."""
    requests = [make_request(i) for i in range(6)]
    before = sys.getrefcount(requests[1])
    queue = Rotation()
    for request in requests:
        queue.add(request)
    for i in (1, 3, 4):
        queue.remove(requests[i])
    step = Step(2, 64)
    for _ in queue.take(step):
        step.num_rows -= 1
    after = sys.getrefcount(requests[1])
    assert len(queue) == 1
    assert after == before


def test_decodes_take_turns_when_they_do_not_all_fit() -> None:
    harness = Harness(max_tokens_per_step=64, max_requests_per_step=3)
    for i in range(8):
        harness.open(f"r{i}", 1, max_tokens=100)
    while harness.scheduler.stats.num_waiting:
        harness.step()
    served = [name for _ in range(8) for name in harness.rows()]
    assert sorted(served) == sorted([f"r{i}" for i in range(8)] * 3)


@pytest.mark.parametrize("policy", get_args(PolicyName))
@pytest.mark.parametrize(("num_rows", "num_slots"), [(1, 1), (2, 1), (1, 2), (4, 4), (9, 3)])
def test_neither_decodes_nor_prefills_starve(num_rows: int, num_slots: int, policy: str) -> None:
    num_decodes, num_prompt = 10, 11
    limits = {"max_tokens_per_step": num_rows, "max_requests_per_step": num_slots}
    harness = Harness(policy=policy, **limits)
    for i in range(num_decodes):
        harness.open(f"d{i}", 1, max_tokens=150)
    while harness.scheduler.stats.num_waiting:
        harness.step()
    prefill = harness.open("prefill", num_prompt)
    # The prefill's last token may take a turn among the decodes.
    decode_bound = 2 * -(-(num_decodes + 1) // min(num_rows, num_slots))
    prefill_bound = 2 * -(-num_prompt // max(1, num_rows // 4))
    last_served = {f"d{i}": 0 for i in range(num_decodes)}
    for step in range(1, prefill_bound + decode_bound + 1):
        rows = harness.rows()
        for name in rows.keys() & last_served.keys():
            last_served[name] = step
        assert step - min(last_served.values()) <= decode_bound
        if step == prefill_bound:
            assert prefill.num_pending <= 1
        if prefill.num_computed == num_prompt:
            return
    pytest.fail("the prefill's last token did not get its turn")


def test_rows_kept_for_prefills_go_back_to_decodes() -> None:
    harness = Harness(num_blocks=(8, 8, 8, 8), max_tokens_per_step=8, max_requests_per_step=8)
    for i in range(8):
        harness.open(f"d{i}", 1, max_tokens=3)
    harness.open("does-not-fit-yet", 4)
    assert [len(harness.rows()) for _ in range(3)] == [8, 8, 8]


def test_prefills_are_served_by_arrival_and_chunked() -> None:
    harness = Harness(max_tokens_per_step=6)
    harness.open("a", 8)
    harness.open("b", 8)
    assert harness.rows() == {"a": (0, 6)}
    assert harness.rows() == {"a": (6, 8), "b": (0, 4)}
    assert harness.rows() == {"a": (8, 9), "b": (4, 8)}
    assert harness.rows() == {"a": (9, 10), "b": (8, 9)}
