"""The order of a step: rotation, arrival, and what each side leaves the other."""

import random
from typing import get_args

import pytest
from scheduler_harness import Harness

from sliceserve.configs import SamplingParams
from sliceserve.configs.engine import PolicyName
from sliceserve.scheduler.ordering import ByRank
from sliceserve.scheduler.request import Request


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
