"""Known, computed, sampled: one request at a time and a few together."""

import pytest
from scheduler_harness import EOS, FakeModel, Harness

from sliceserve.scheduler.errors import RequestRefused, SchedulerError
from sliceserve.scheduler.plan import SampledToken, StepOutput


def test_nothing_to_do() -> None:
    assert Harness().scheduler.schedule() is None


def test_whole_request_runs_to_max_tokens() -> None:
    harness = Harness()
    request = harness.open("a", 5, max_tokens=3)
    tokens = []
    for start, stop in [(0, 5), (5, 6), (6, 7)]:
        plan, (progress,) = harness.step()
        assert (plan.requests[0].start, plan.num_tokens) == (start, stop - start)
        assert progress.start == stop
        assert progress.seconds == pytest.approx(0.001 * (stop - start))
        tokens.append(progress.token.token_id)
    assert progress.finish_reason == "length"
    assert tokens == request.outputs == [FakeModel.token("a", p) for p in (5, 6, 7)]
    assert harness.scheduler.get("a") is None
    assert all(u.num_free == u.segment.num_blocks for u in harness.blocks.usage())


@pytest.mark.parametrize(
    ("token_id", "sampling", "expected"),
    [
        (EOS, {"ignore_eos": False}, "stop"),
        (EOS, {"ignore_eos": True}, None),
        (7, {"stop_token_ids": (5, 7)}, "stop"),
        (8, {"stop_token_ids": (5, 7)}, None),
        (7, {"stop_token_ids": (5, 7), "max_tokens": 1}, "stop"),
        (8, {"max_tokens": 1}, "length"),
    ],
)
def test_finish_reasons(token_id: int, sampling: dict, expected: str | None) -> None:
    harness = Harness()
    harness.open("a", 2, **sampling)
    plan = harness.scheduler.schedule()
    (progress,) = harness.scheduler.update(plan, StepOutput({"a": SampledToken(token_id)}))
    assert progress.finish_reason == expected
    assert (harness.scheduler.get("a") is None) == (expected is not None)


def test_context_limit_ends_a_request() -> None:
    harness = Harness(max_model_len=7)
    harness.open("a", 5, max_tokens=100)
    assert harness.step()[1][0].finish_reason is None
    assert harness.step()[1][0].finish_reason == "length"


def test_tokens_given_at_opening_count_and_are_not_sampled_again() -> None:
    harness = Harness(max_tokens_per_step=4)
    harness.open("a", 5, num_outputs=3, max_tokens=5)
    assert harness.step()[1][0].token is None
    (progress,) = harness.step()[1]
    assert (progress.start, progress.finish_reason) == (8, None)
    (progress,) = harness.step()[1]
    assert (progress.start, progress.finish_reason) == (9, "length")


def test_tail_waits_for_packets_and_samples_once_each_is_known() -> None:
    harness = Harness()
    request = harness.open("t", 4, entry_layer=8)
    assert harness.scheduler.schedule() is None
    assert harness.send("t", 0, 3) is None
    assert harness.step()[1][0].token is None
    assert harness.scheduler.schedule() is None
    # Two known positions again, one gap, then the missing one twice.
    assert harness.send("t", 1, 3) is None
    assert harness.send("t", 4, 5) == 3
    assert harness.send("t", 2, 4) is None
    assert harness.send("t", 3, 4) is None
    plan, (progress,) = harness.step()
    assert plan.requests[0].inputs == [b"t@3"]
    assert progress.start == 4
    assert (request.num_known, request.num_tokens, request.num_pending) == (4, 5, 0)


def test_packet_for_a_token_that_was_not_chosen_is_refused() -> None:
    harness = Harness()
    request = harness.open("t", 2, entry_layer=8)
    with pytest.raises(RequestRefused, match="position 2"):
        harness.send("t", 0, 3)
    assert request.num_known == 0


def test_packets_that_arrive_during_a_step_are_computed_in_the_next() -> None:
    harness = Harness()
    harness.open("t", 4, entry_layer=8)
    harness.send("t", 0, 2)
    plan, output = harness.schedule()
    harness.send("t", 2, 4)
    harness.scheduler.check()
    harness.scheduler.update(plan, output)
    assert harness.rows() == {"t": (2, 4)}


def test_head_emits_each_position_once_and_never_ends_by_itself() -> None:
    harness = Harness(max_tokens_per_step=4, max_model_len=8)
    harness.open("h", 6, is_head=True, max_tokens=1)
    packets = []
    for expected_start in (0, 4):
        (progress,) = harness.step()[1]
        assert progress.start == expected_start
        packets += progress.packets
    harness.send("h", 6, 8)
    packets += harness.step()[1][0].packets
    assert packets == [FakeModel.packet("h", p) for p in range(8)]
    assert harness.scheduler.get("h") is not None
    with pytest.raises(RequestRefused, match="limit of 8"):
        harness.send("h", 8, 9)


def test_rows_are_sorted_by_entry_layer_and_stable() -> None:
    harness = Harness()
    for name, entry_layer in [("a", 15), ("b", 0), ("c", 8), ("d", 0), ("e", 15)]:
        harness.open(name, 2, entry_layer=entry_layer)
        if entry_layer:
            harness.send(name, 0, 2)
    plan, _ = harness.step()
    assert [r.request_id for r in plan.requests] == ["b", "d", "c", "a", "e"]


def test_latest_arrival_is_preempted_and_replayed_without_sampling_again() -> None:
    harness = Harness(num_blocks=(4, 4, 4, 4), max_model_len=16)
    old = harness.open("old", 8, max_tokens=8)
    young = harness.open("young", 7, max_tokens=8)
    harness.step()
    assert len(young.outputs) == 1
    assert harness.rows() == {"old": (8, 9)}
    assert harness.scheduler.stats.num_preempted_total == 1
    assert harness.scheduler.stats.num_waiting == 1
    while harness.scheduler.get("old") is not None:
        assert "young" not in harness.rows()
    plan, (progress,) = harness.step()
    assert (plan.requests[0].start, plan.num_tokens) == (0, 8)
    assert progress.start == 8
    assert old.outputs == [FakeModel.token("old", p) for p in range(8, 16)]
    assert young.outputs == [FakeModel.token("young", p) for p in range(7, 9)]


def test_idle_request_gives_up_its_blocks_and_is_replayed_from_its_packets() -> None:
    harness = Harness(num_blocks=(4, 4, 4, 4), max_model_len=16)
    harness.open("old", 8, max_tokens=5)
    idle = harness.open("idle", 8, entry_layer=15)
    harness.send("idle", 0, 8)
    harness.step()
    assert idle.num_pending == 0
    while harness.scheduler.get("old") is not None:
        assert harness.rows().keys() == {"old"}
    plan, (progress,) = harness.step()
    assert plan.requests[0].inputs == [FakeModel.packet("idle", p) for p in range(8)]
    assert progress.token is None
    assert len(idle.outputs) == 1


@pytest.mark.parametrize("max_tokens_per_step", [5, 16])
def test_replayed_head_emits_nothing_twice(max_tokens_per_step: int) -> None:
    harness = Harness((4, 4, 4, 4), max_model_len=16, max_tokens_per_step=max_tokens_per_step)
    harness.open("old", 4, max_tokens=8)
    head = harness.open("head", 8, is_head=True)
    emitted = []
    while harness.scheduler.get("old") is not None or head.num_computed < 9:
        if harness.scheduler.get("old") is None:
            harness.send("head", 8, 9)
        for progress in harness.step()[1]:
            if progress.packets:
                assert progress.start == len(emitted)
                emitted += progress.packets
    assert harness.scheduler.stats.num_preempted_total >= 1
    assert emitted == [FakeModel.packet("head", p) for p in range(9)]


def test_later_arrival_leaves_a_step_in_which_an_earlier_one_needs_its_blocks() -> None:
    harness = Harness(num_blocks=(8, 8, 8, 4), max_model_len=16)
    harness.open("old", 8, entry_layer=15)
    harness.open("young", 7)
    harness.send("old", 0, 8)
    harness.step()
    # The later one is first in the rotation.
    harness.send("old", 8, 9)
    assert harness.rows() == {"old": (8, 9)}
    assert harness.scheduler.stats.num_preempted_total == 1
    assert harness.scheduler.stats.num_waiting == 1


def test_request_without_later_arrivals_gives_up_its_own_blocks() -> None:
    harness = Harness(num_blocks=(4, 4, 4, 4), max_model_len=16)
    harness.open("old", 8, entry_layer=8)
    harness.send("old", 0, 8)
    young = harness.open("young", 8, max_tokens=8)
    harness.step()
    assert harness.scheduler.schedule() is None
    assert not young.holds_blocks
    harness.scheduler.cancel("old")
    assert harness.rows() == {"young": (0, 9)}


@pytest.mark.parametrize("reopened", [False, True])
def test_request_cancelled_during_its_step(reopened: bool) -> None:
    harness = Harness()
    harness.open("a", 4)
    harness.open("b", 4)
    plan, output = harness.schedule()
    harness.scheduler.cancel("a")
    harness.scheduler.cancel("a")
    if reopened:
        harness.open("a", 6)
    harness.scheduler.check()
    assert [p.request.request_id for p in harness.scheduler.update(plan, output)] == ["b"]
    harness.scheduler.check()
    assert harness.rows().get("a") == ((0, 6) if reopened else None)


def test_packet_bytes_are_counted_while_they_are_held() -> None:
    harness = Harness()
    harness.open("t", 4, entry_layer=8)
    harness.send("t", 0, 4)
    assert harness.scheduler.stats.held_packet_bytes == 4 * len(b"t@0")
    harness.scheduler.cancel("t")
    assert harness.scheduler.stats.held_packet_bytes == 0


@pytest.mark.parametrize(
    ("num_blocks", "num_prompt", "options", "code"),
    [
        ((8, 8, 8, 8), 0, {}, "invalid_request"),
        ((8, 8, 8, 8), 4, {"entry_layer": 30}, "invalid_request"),
        ((8, 8, 8, 8), 4, {"num_outputs": 3, "max_tokens": 3}, "invalid_request"),
        ((8, 8, 8, 8), 20, {}, "context_length_exceeded"),
        ((8, 8, 8, 8), 21, {"is_head": True}, "context_length_exceeded"),
        ((8, 8, 8, 3), 12, {"entry_layer": 22}, "context_length_exceeded"),
    ],
)
def test_what_cannot_be_served_is_refused(
    num_blocks: tuple[int, ...], num_prompt: int, options: dict, code: str
) -> None:
    harness = Harness(num_blocks=num_blocks, max_model_len=20)
    with pytest.raises(RequestRefused) as refused:
        harness.open("a", num_prompt, **options)
    assert refused.value.code == code
    assert harness.scheduler.stats.num_live == 0
    harness.scheduler.check()


def test_longest_requests_are_served() -> None:
    harness = Harness(max_model_len=20)
    harness.open("whole", 19)
    harness.open("head", 20, is_head=True)
    assert harness.rows() == {"whole": (0, 19), "head": (0, 20)}


def test_full_engine_and_known_id_are_refused() -> None:
    harness = Harness(max_requests=2)
    harness.open("a", 4)
    with pytest.raises(RequestRefused, match="a is live"):
        harness.open("a", 4)
    harness.open("b", 4)
    with pytest.raises(RequestRefused, match="all 2 places are taken") as refused:
        harness.open("c", 4)
    assert refused.value.code == "overloaded"


def test_steps_must_alternate_with_updates() -> None:
    harness = Harness()
    harness.open("a", 4)
    harness.scheduler.schedule()
    with pytest.raises(SchedulerError, match="not been updated"):
        harness.scheduler.schedule()


@pytest.mark.parametrize("is_head", [False, True])
def test_missing_results_are_noticed(is_head: bool) -> None:
    harness = Harness()
    harness.open("a", 4, is_head=is_head)
    plan = harness.scheduler.schedule()
    with pytest.raises(SchedulerError, match="request a"):
        harness.scheduler.update(plan, StepOutput())


def test_unknown_ids_are_ignored() -> None:
    scheduler = Harness().scheduler
    scheduler.cancel("nobody")
    assert scheduler.append("nobody", 3, [b""]) is None
    assert scheduler.get("nobody") is None
