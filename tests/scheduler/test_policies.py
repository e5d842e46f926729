"""What each policy promises: who goes next, who gives way, and for how long anybody waits."""

from collections import Counter
from typing import get_args

import pytest
from scheduler_harness import FakeModel, Harness

from sliceserve.configs.engine import PolicyName
from sliceserve.scheduler.policies.policy import ARRIVALS_PER_LEVEL
from sliceserve.scheduler.policies.prefill_aware import PATIENCE
from sliceserve.scheduler.policies.priority import MAX_LEVEL
from sliceserve.scheduler.request import Request

POLICIES = get_args(PolicyName)
PLENTY = (600, 600, 600, 600)


def settle(harness: Harness) -> None:
    """Step until nobody waits for blocks."""
    while harness.scheduler.stats.num_waiting:
        harness.step()


def served(harness: Harness, num_steps: int) -> Counter[str]:
    """Rows of each tenant, the part of an id before the dash, in so many steps."""
    rows: Counter[str] = Counter()
    for _ in range(num_steps):
        for name, (start, stop) in harness.rows().items():
            rows[name.split("-")[0]] += stop - start
    return rows


@pytest.mark.parametrize("policy", POLICIES)
def test_alike_requests_are_served_as_they_came(policy: str) -> None:
    harness = Harness(policy=policy, max_tokens_per_step=6)
    harness.open("a", 8)
    harness.open("b", 8)
    assert [harness.rows() for _ in range(3)] == [
        {"a": (0, 6)},
        {"a": (6, 8), "b": (0, 4)},
        {"a": (8, 9), "b": (4, 8)},
    ]


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_said_does_not_depend_on_the_policy(policy: str) -> None:
    harness = Harness((9, 9, 9, 9), policy=policy, max_tokens_per_step=7, max_requests_per_step=3)
    said: dict[str, list[int]] = {f"r{i}": [] for i in range(8)}
    for i, name in enumerate(said):
        harness.open(name, 1 + 2 * i, max_tokens=9, tenant="ab"[i % 2], priority=-i)
    while harness.scheduler.stats.num_live:
        for progress in harness.step()[1]:
            if progress.token is not None:
                said[progress.request.request_id].append(progress.token.token_id)
    assert harness.scheduler.stats.num_preempted_total > 0
    for i, name in enumerate(said):
        first = 1 + 2 * i
        assert said[name] == [FakeModel.token(name, p) for p in range(first, first + 9)]


class TestPriority:
    def test_the_urgent_go_first_and_then_who_came_first(self) -> None:
        harness = Harness(policy="priority", max_tokens_per_step=4)
        for name, priority in [("later", 1), ("a", 0), ("b", 0), ("now", -1)]:
            harness.open(name, 4, priority=priority, max_tokens=1)
        assert [list(harness.rows()) for _ in range(4)] == [["now"], ["a"], ["b"], ["later"]]

    @pytest.mark.parametrize(("priority", "levels"), [(0, 1), (1, 2), (99, MAX_LEVEL + 1)])
    def test_fewer_than_its_levels_allow_pass_a_request(self, priority, levels) -> None:
        harness = Harness(policy="priority", max_tokens_per_step=4, max_requests_per_step=1)
        harness.open("patient", 4, priority=priority, max_tokens=1)
        num_passed = 0
        while True:
            harness.open(f"urgent-{num_passed}", 4, priority=-1, max_tokens=1)
            if "patient" in harness.rows():
                break
            num_passed += 1
        assert num_passed == levels * ARRIVALS_PER_LEVEL - 1

    def test_urgent_decodes_get_more_turns_but_not_all(self) -> None:
        harness = Harness(PLENTY, policy="priority", max_tokens_per_step=1)
        for i in range(3):
            harness.open(f"urgent-{i}", 1, priority=-1, max_tokens=199)
            harness.open(f"patient-{i}", 1, max_tokens=199)
        settle(harness)
        last_seen, longest = 0, 0
        for step in range(300):
            if "patient" in next(iter(harness.rows())):
                longest = max(longest, step - last_seen)
                last_seen = step
        assert 10 < longest <= ARRIVALS_PER_LEVEL + 6

    def test_the_least_urgent_gives_way_in_memory(self) -> None:
        harness = Harness((4, 4, 4, 4), policy="priority", max_model_len=16)
        patient = harness.open("patient", 8, priority=1)
        harness.step()
        harness.open("urgent", 8, max_tokens=8)
        assert "urgent" in harness.rows()
        assert not patient.holds_blocks
        while harness.scheduler.get("urgent") is not None:
            assert harness.rows().keys() == {"urgent"}
        assert harness.rows() == {"patient": (0, 9)}


class TestFair:
    @pytest.mark.parametrize("weight", [1.0, 3.0, 0.25])
    def test_decodes_share_the_rows_by_weight(self, weight: float) -> None:
        limits = {"max_tokens_per_step": 4, "tenant_weights": {"b": weight}}
        harness = Harness(PLENTY, policy="fair", **limits)
        for i in range(16):
            harness.open(f"a-{i}", 1, tenant="a", max_tokens=199)
            harness.open(f"b-{i}", 1, tenant="b", max_tokens=199)
        settle(harness)
        served(harness, 20)
        rows = served(harness, 100)
        assert rows["b"] == pytest.approx(400 * weight / (1 + weight), abs=2)

    def test_prompts_share_the_rows_however_they_are_cut(self) -> None:
        limits = {"max_tokens_per_step": 8, "tenant_weights": {"small": 2.0}}
        harness = Harness(PLENTY, policy="fair", **limits)
        for i in range(30):
            harness.open(f"large-{i}", 40, tenant="large", max_tokens=1)
        for i in range(200):
            harness.open(f"small-{i}", 5, tenant="small", max_tokens=1)
        rows = served(harness, 100)
        # One prompt of 40 may be ahead.
        assert rows["small"] == pytest.approx(2 * rows["large"], abs=80)
        assert rows.total() == 8 * 100

    def test_one_request_is_not_held_up_by_a_flood(self) -> None:
        harness = Harness(PLENTY, policy="fair", max_tokens_per_step=16, max_requests_per_step=8)
        for i in range(60):
            harness.open(f"flood-{i}", 10, tenant="flood", max_tokens=20)
        served(harness, 20)
        harness.open("one", 10, tenant="one", max_tokens=20)
        served_in = [step for step in range(40) if "one" in harness.rows()]
        assert served_in[0] <= 1
        # Ten rows in at most two steps that prefills get a share of, then a token in each step.
        assert served_in[-20:] == list(range(served_in[-20], served_in[-20] + 20))

    @pytest.mark.parametrize(("burst", "ahead"), [(0, 0), (60, 32)])
    def test_idle_time_is_not_saved_up_beyond_the_burst(self, burst: int, ahead: int) -> None:
        limits = {"max_tokens_per_step": 2, "fair_burst_tokens": burst}
        harness = Harness(PLENTY, policy="fair", **limits)
        harness.open("b-0", 1, tenant="b", max_tokens=1)
        harness.step()
        for i in range(4):
            harness.open(f"a-{i}", 1, tenant="a", max_tokens=199)
        settle(harness)
        served(harness, 100)
        for i in range(4):
            harness.open(f"b-{i}", 1, tenant="b", max_tokens=199)
        rows = served(harness, 50)
        # Four rows of prompts for a token of the burst each, the others for two.
        assert rows["b"] - rows["a"] == pytest.approx(ahead, abs=6)

    @pytest.mark.parametrize(("burst", "in_time"), [(0, False), (40, True)])
    def test_a_prompt_within_the_burst_is_not_slowed_by_a_flood(
        self, burst: int, in_time: bool
    ) -> None:
        limits = {"max_tokens_per_step": 8, "fair_burst_tokens": burst}
        harness = Harness(PLENTY, policy="fair", **limits)
        for i in range(60):
            harness.open(f"flood-{i}", 10, tenant="flood", max_tokens=1)
        served(harness, 20)
        harness.open("one", 40, tenant="one", max_tokens=1)
        # As many steps as alone.
        served(harness, 5)
        assert (harness.scheduler.get("one") is None) == in_time

    def test_bursts_do_not_add_up(self) -> None:
        harness = Harness(PLENTY, policy="fair", max_tokens_per_step=8, fair_burst_tokens=40)
        for i in range(60):
            harness.open(f"flood-{i}", 10, tenant="flood", max_tokens=1)
        served(harness, 20)
        # The second finds the first where its burst has put it.
        for tenant in "bc":
            harness.open(tenant, 150, tenant=tenant, max_tokens=1)
        rows = served(harness, 9)
        assert rows["b"] == pytest.approx(36, abs=8)
        assert rows["c"] == pytest.approx(36, abs=8)

    def test_a_tenant_that_waits_for_nobody_keeps_its_counter(self) -> None:
        # Always with a decode in the step, "b" never returns, so it is never lifted.
        harness = Harness(PLENTY, policy="fair", max_tokens_per_step=4, max_requests_per_step=4)
        harness.open("b-0", 1, tenant="b", max_tokens=199)
        for i in range(8):
            harness.open(f"a-{i}", 1, tenant="a", max_tokens=199)
        settle(harness)
        served(harness, 20)
        assert all("b-0" in harness.rows() for _ in range(20))

    def test_a_flood_gives_way_in_memory(self) -> None:
        harness = Harness((40, 40, 40, 40), policy="fair", max_model_len=24)
        flood = [harness.open(f"flood-{i}", 12, tenant="flood", max_tokens=9) for i in range(12)]
        harness.step()
        one = harness.open("one", 16, tenant="one", max_tokens=8)
        harness.step()
        assert one.holds_blocks
        held = [request.holds_blocks for request in flood]
        assert held == sorted(held, reverse=True)
        while harness.scheduler.get("one") is not None:
            assert "one" in harness.rows()

    def test_a_replay_is_not_charged_again(self) -> None:
        harness = Harness((4, 4, 4, 4), policy="fair", max_model_len=16)
        harness.open("old", 8, tenant="a", max_tokens=8)
        harness.open("young", 7, tenant="b", max_tokens=8)
        while harness.scheduler.stats.num_live:
            harness.step()
        assert harness.scheduler.stats.num_preempted_total > 0
        tenants = harness.policy._tenants
        # Prompts at 1, and at 2 what is computed of the answers: all but the last token.
        assert (tenants["a"].counter, tenants["b"].counter) == (8 + 2 * 7, 7 + 2 * 7)


LENGTHS = {"policy": "prefill-aware", "long_prefill_tokens": 16}


class TestPrefillAware:
    def open_short(self, harness: Harness, name: str) -> Request:
        return harness.open(name, 8, max_tokens=1)

    def test_short_prompts_pass_long_ones(self) -> None:
        harness = Harness(PLENTY, max_tokens_per_step=16, **LENGTHS)
        harness.open("long", 150)
        assert harness.rows() == {"long": (0, 16)}
        self.open_short(harness, "short")
        assert harness.rows() == {"short": (0, 8), "long": (16, 24)}

    def test_long_ones_leave_a_share_of_a_step_beside_others_and_fill_it_alone(self) -> None:
        limits = {**LENGTHS, "max_tokens_per_step": 16, "long_prefill_share": 0.25}
        harness = Harness(PLENTY, **limits)
        harness.open("decode", 1, max_tokens=6)
        harness.step()
        harness.open("long", 150)
        for i in range(5):
            assert harness.rows() == {"decode": (1 + i, 2 + i), "long": (4 * i, 4 * i + 4)}
        assert harness.rows() == {"long": (20, 36)}

    @pytest.mark.parametrize(("num_rows", "share"), [(1, 0.5), (4, 0.5), (16, 0.1), (16, 1.0)])
    def test_a_long_one_goes_on_within_its_bound(self, num_rows: int, share: float) -> None:
        limits = {**LENGTHS, "max_tokens_per_step": num_rows, "long_prefill_share": share}
        harness = Harness((1700, 1700, 1700, 1700), **limits)
        for i in range(2 * num_rows):
            harness.open(f"decode-{i}", 1, max_tokens=199)
        settle(harness)
        long = harness.open("long", 80)
        num_long = 80 - 16
        least = max(1, min(num_rows // 4, int(share * num_rows)))
        bound = (PATIENCE + 2) * -(-num_long // least)
        for step in range(bound):
            self.open_short(harness, f"short-{step}")
            self.open_short(harness, f"other-{step}")
            harness.step()
        assert long.num_pending <= 16

    def test_a_long_one_that_does_not_fit_is_not_passed_for_ever(self) -> None:
        harness = Harness((20, 20, 20, 20), max_model_len=80, **LENGTHS)
        harness.open("holder", 40, entry_layer=8)
        harness.send("holder", 0, 40)
        harness.step()
        harness.open("long", 60)
        for step in range(PATIENCE):
            self.open_short(harness, f"short-{step}")
            assert f"short-{step}" in harness.rows()
        self.open_short(harness, "late")
        assert harness.scheduler.schedule() is None
        harness.scheduler.cancel("holder")
        assert harness.rows().keys() == {"long", "late"}

    def test_a_prompt_under_way_counts_whole(self) -> None:
        harness = Harness(PLENTY, max_tokens_per_step=16, **LENGTHS)
        harness.open("long", 100, entry_layer=8)
        self.open_short(harness, "short")
        harness.send("long", 0, 12)
        assert harness.rows() == {"short": (0, 8), "long": (0, 8)}
