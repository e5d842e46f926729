"""Rows of a step that ends in time, learnt from steps that have run."""

import pytest
from scheduler_harness import Harness

from sliceserve.scheduler.budget import StepBudget


def run(budget: StepBudget, num_steps: int, fixed_s: float, row_s: float) -> int:
    """Steps that are always full; the rows of the last one."""
    for _ in range(num_steps):
        num_rows = budget.num_rows(0)
        budget.observe(num_rows, fixed_s + row_s * num_rows)
    return num_rows


def test_rows_double_until_the_target_is_met() -> None:
    budget = StepBudget(target_s=0.1, max_rows=512)
    seen = []
    for _ in range(8):
        seen.append(budget.num_rows(0))
        budget.observe(seen[-1], 0.02 + 0.001 * seen[-1])
    assert seen[:3] == [16, 32, 64]
    # (0.1 - 0.02) / 0.001, give or take the rounding of a sum.
    assert set(seen[4:]) <= {79, 80}


@pytest.mark.parametrize(("row_s", "expected"), [(0.004, 20), (0.0005, 160)])
def test_rows_follow_a_machine_that_gets_slower_or_faster(row_s: float, expected: int) -> None:
    budget = StepBudget(target_s=0.1, max_rows=512)
    run(budget, 50, 0.02, 0.001)
    assert abs(run(budget, 300, 0.02, row_s) - expected) <= 1


def test_a_fast_machine_has_the_rows_of_the_configuration() -> None:
    assert run(StepBudget(target_s=0.1, max_rows=512), 10, 0.0, 0.0001) == 512


@pytest.mark.parametrize("needed", [0, 1, 50])
def test_a_target_that_cannot_be_met_leaves_what_is_needed(needed: int) -> None:
    budget = StepBudget(target_s=0.001, max_rows=40)
    run(budget, 20, 0.5, 0.01)
    assert budget.num_rows(needed) == min(40, max(1, needed))


def test_steps_that_are_all_alike_count_as_proportional() -> None:
    budget = StepBudget(target_s=0.1, max_rows=512)
    for _ in range(20):
        budget.observe(30, 0.06)
    assert budget.num_rows(0) == 50


def test_steps_without_time_leave_all_rows() -> None:
    budget = StepBudget(target_s=0.1, max_rows=20)
    budget.observe(10, 0.0)
    assert budget.num_rows(0) == 20


def test_the_scheduler_learns_from_the_seconds_of_its_steps() -> None:
    # The model's steps take a millisecond a row.
    harness = Harness((200, 200, 200, 200), max_tokens_per_step=64, target_itl_ms=24.0)
    harness.open("long", 180, max_tokens=2)
    sizes = [stop - start for start, stop in (harness.rows()["long"] for _ in range(5))]
    assert sizes == [16, 24, 24, 24, 24]


def test_decodes_are_never_cut_to_the_target() -> None:
    harness = Harness((400, 400, 400, 400), max_tokens_per_step=64, target_itl_ms=4.0)
    for i in range(30):
        harness.open(f"r{i}", 1, max_tokens=100)
    while harness.scheduler.stats.num_waiting:
        harness.step()
    harness.open("prefill", 100)
    for _ in range(10):
        rows = harness.rows()
        assert sum(name != "prefill" for name in rows) == 30
        assert rows["prefill"][1] - rows["prefill"][0] >= 1
