"""What is found again, by whom, and what has to go first."""

import pytest
from scheduler_harness import NUM_COMMON, FakeModel, Harness

from sliceserve.scheduler import prefix_cache
from sliceserve.scheduler.errors import SchedulerError
from sliceserve.scheduler.plan import StepOutput
from sliceserve.scheduler.prefix import block_digests

# Two whole blocks of 4, and a rest that differs between ids.
PROMPT = 12
COMMON = NUM_COMMON // 4 * 4


def make(**options: object) -> Harness:
    return Harness(**{"prefix_cache": True, **options})


def finish(harness: Harness, request_id: str) -> int:
    """Run until the request is computed, and end it; how many rows that took."""
    num_rows = 0
    while harness.scheduler.get(request_id).num_pending:
        plan, _ = harness.step()
        num_rows += plan.num_tokens
        if harness.scheduler.get(request_id) is None:
            return num_rows
    harness.scheduler.cancel(request_id)
    harness.scheduler.check()
    return num_rows


def packets(request_id: str, num_tokens: int) -> list[bytes]:
    return [FakeModel.packet(request_id, p) for p in range(num_tokens)]


def num_cached(harness: Harness) -> list[int]:
    return [usage.num_cached for usage in harness.blocks.usage()]


def test_a_request_that_begins_alike_computes_the_rest_alone() -> None:
    harness = make()
    harness.open("x/1", PROMPT, max_tokens=1)
    assert finish(harness, "x/1") == PROMPT
    request = harness.open("x/2", PROMPT, max_tokens=1)
    assert harness.rows() == {"x/2": (COMMON, PROMPT)}
    assert request.num_cached == COMMON
    stats = harness.scheduler.stats
    assert stats.num_prefix_queried_tokens_total == 2 * PROMPT
    assert stats.num_prefix_hit_tokens_total == COMMON


def test_the_row_that_is_sampled_from_is_always_computed() -> None:
    harness = make()
    for _ in range(2):
        request = harness.open("x/1", 8, max_tokens=1)
        plan, (progress,) = harness.step()
        assert progress.token is not None
    assert (plan.requests[0].start, request.num_cached) == (4, 4)


def test_answers_are_found_too() -> None:
    harness = make()
    harness.open("x/1", 6, max_tokens=7)
    finish(harness, "x/1")
    # Position 12 was sampled and not computed: three blocks are whole.
    request = harness.open("x/1", 13, max_tokens=1)
    assert harness.rows() == {"x/1": (12, 13)}
    assert request.num_cached == 12


@pytest.mark.parametrize(
    "other", [{"tenant": "b"}, {"entry_layer": 15}, {"codec": "int8/1"}, {"entry_layer": 0}]
)
def test_other_tenants_cuts_and_codecs_have_nothing_in_common(other: dict) -> None:
    harness = make()
    first = {"entry_layer": 8, "tenant": "a", "codec": "float32/1"}
    harness.open("x/1", PROMPT, **first)
    harness.send("x/1", 0, PROMPT)
    finish(harness, "x/1")
    digests = block_digests(packets("x/1", PROMPT), 4)
    request = harness.open("x/1", PROMPT, **{**first, **other}, prefix=digests)
    assert (request.num_cached, request.num_computed) == (0, 0)
    if request.entry_layer:
        assert request.num_known == 0
        harness.send("x/1", 0, PROMPT)
    assert harness.rows() == {"x/1": (0, PROMPT)}


def test_a_tail_knows_packets_by_their_digests() -> None:
    harness = make()
    harness.open("x/1", PROMPT, entry_layer=8)
    harness.send("x/1", 0, PROMPT)
    finish(harness, "x/1")
    digests = block_digests(packets("x/1", PROMPT), 4)
    request = harness.open("x/1", PROMPT + 3, entry_layer=8, prefix=[*digests, b"unknown"])
    assert request.inputs == packets("x/1", PROMPT)
    assert (request.num_computed, request.num_cached) == (PROMPT, PROMPT)
    assert harness.scheduler.stats.held_packet_bytes == sum(map(len, request.inputs))
    harness.send("x/1", PROMPT, PROMPT + 3)
    assert harness.rows() == {"x/1": (PROMPT, PROMPT + 3)}


def test_a_prefix_longer_than_the_window_leaves_credit_for_what_follows() -> None:
    """Nothing is computed until more is sent, so nothing else would raise it."""
    harness = make(credit_window=4)
    harness.open("x/1", PROMPT, entry_layer=8)
    for start in range(0, PROMPT, 4):
        harness.send("x/1", start, start + 4)
        harness.step()
    harness.scheduler.cancel("x/1")
    digests = block_digests(packets("x/1", PROMPT), 4)
    request = harness.open("x/1", PROMPT + 3, entry_layer=8, prefix=digests)
    assert request.num_computed == PROMPT
    assert request.credit == PROMPT + 4
    harness.scheduler.check()
    harness.send("x/1", PROMPT, PROMPT + 3)
    assert harness.rows() == {"x/1": (PROMPT, PROMPT + 3)}


def test_a_tail_whose_whole_prompt_is_cached_samples_without_a_packet() -> None:
    harness = make()
    harness.open("x/1", PROMPT, entry_layer=8)
    harness.send("x/1", 0, PROMPT)
    finish(harness, "x/1")
    # One more digest than there are positions before the next token.
    digests = block_digests(packets("x/1", 4 * PROMPT), 4)
    request = harness.open("x/1", PROMPT, entry_layer=8, prefix=digests)
    assert (request.num_known, request.num_computed) == (PROMPT, PROMPT - 4)
    _, (progress,) = harness.step()
    assert progress.start == PROMPT


def test_a_digest_out_of_its_place_is_unknown() -> None:
    harness = make()
    harness.open("x/1", PROMPT, entry_layer=8)
    harness.send("x/1", 0, PROMPT)
    finish(harness, "x/1")
    digests = block_digests(packets("x/1", PROMPT), 4)
    request = harness.open("x/1", PROMPT, entry_layer=8, prefix=digests[1:])
    assert request.num_known == 0


def test_equal_digests_of_other_inputs_are_no_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    def extend(digests: list[bytes], inputs: list, block_size: int) -> None:
        digests += [b"same"] * (len(inputs) // block_size - len(digests))

    monkeypatch.setattr(prefix_cache, "extend_digests", extend)
    harness = make()
    for request_id in ("x/1", "y/1", "x/2"):
        request = harness.open(request_id, PROMPT, max_tokens=1)
        finish(harness, request_id)
        # FakeKV has compared what the rows saw; only the first block of "x" was ever kept.
        assert request.num_cached == (4 if request_id == "x/2" else 0)


def test_equal_blocks_behind_different_ones_are_no_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    def extend(digests: list[bytes], inputs: list, block_size: int) -> None:
        stops = range((len(digests) + 1) * block_size, len(inputs) + 1, block_size)
        digests += [bytes([stop]) + bytes(inputs[stop - block_size : stop]) for stop in stops]

    monkeypatch.setattr(prefix_cache, "extend_digests", extend)
    monkeypatch.setattr(FakeModel, "token", staticmethod(lambda i, p: int(i) if p < 4 else p))
    harness = make()
    for request_id in ("1", "2"):
        request = harness.open(request_id, PROMPT, max_tokens=1)
        finish(harness, request_id)
    assert request.num_cached == 0


def test_the_least_recently_used_goes_first_and_last_blocks_before_first_ones() -> None:
    harness = make(num_blocks=(8, 8, 8, 8), max_model_len=32)
    for request_id in ("x", "y"):
        harness.open(request_id, 12, max_tokens=1)
        finish(harness, request_id)
    assert num_cached(harness) == [6] * 4
    # Used again, so "y" is the older one now.
    harness.open("x", 12, max_tokens=1)
    finish(harness, "x")
    # Two of its three blocks are free; the last of "y" makes room for the other.
    harness.open("z", 9, max_tokens=1)
    finish(harness, "z")
    assert num_cached(harness) == [7] * 4
    for request_id, num_cached_tokens in (("x", 12), ("y", 8)):
        harness.open(request_id, 13, max_tokens=1)
        assert harness.rows() == {request_id: (num_cached_tokens, 13)}


def test_a_short_segment_evicts_what_reaches_into_it() -> None:
    harness = make(num_blocks=(8, 4, 8, 8), max_model_len=16)
    harness.open("deep", 8, entry_layer=15)
    harness.send("deep", 0, 8)
    finish(harness, "deep")
    harness.open("whole", 8, max_tokens=1)
    finish(harness, "whole")
    assert num_cached(harness) == [2, 2, 4, 4]
    # Three blocks in segment 1, where two are free: "deep", though older, would not help.
    harness.open("middle", 12, entry_layer=8)
    harness.send("middle", 0, 12)
    finish(harness, "middle")
    assert num_cached(harness) == [1, 4, 6, 6]


def test_cached_blocks_are_there_for_whoever_needs_them() -> None:
    harness = make(num_blocks=(4, 4, 4, 4), max_model_len=16)
    for i in range(5):
        harness.open(f"r{i}", 15, max_tokens=1)
        finish(harness, f"r{i}")
        assert [u.num_free for u in harness.blocks.usage()] == [4] * 4
    assert harness.scheduler.stats.num_preempted_total == 0


def test_packets_of_unused_blocks_are_bounded() -> None:
    block_bytes = [sum(map(len, packets(name, 12)[k : k + 4])) for name in "xy" for k in (0, 4, 8)]
    harness = make(max_cached_packet_bytes=sum(block_bytes[:3]) + sum(block_bytes[3:5]))
    harness.open("thin", 9, max_tokens=1)
    finish(harness, "thin")
    for request_id in ("x", "y"):
        harness.open(request_id, 12, entry_layer=8)
        harness.send(request_id, 0, 12)
        finish(harness, request_id)
    # The last block of "x" had to go; what keeps no packets stays.
    assert num_cached(harness) == [2, 7, 7, 7]
    assert harness.blocks.cached_packet_bytes == sum(block_bytes[:2]) + sum(block_bytes[3:])


def test_two_who_compute_the_same_at_once_end_with_one_copy() -> None:
    harness = make()
    requests = [harness.open(f"x/{i}", PROMPT, max_tokens=2) for i in range(2)]
    harness.step()
    tables = [request.block_tables for request in requests]
    assert [table[:2] for table in tables[0]] == [table[:2] for table in tables[1]]
    assert not {table[2] for table in tables[0]} & {table[2] for table in tables[1]}
    harness.step()
    # Two blocks in common, and one of each; the answers' positions are in none that is whole.
    assert num_cached(harness) == [4] * 4


def test_the_blocks_of_a_waiting_request_are_shared_once_it_catches_up() -> None:
    harness = make(max_tokens_per_step=6)
    harness.open("x/1", PROMPT, max_tokens=1)
    harness.open("x/2", PROMPT, max_tokens=1)
    assert [harness.rows() for _ in range(3)] == [
        {"x/1": (0, 6)},
        {"x/1": (6, 12)},
        {"x/2": (8, 12)},
    ]


def test_a_victim_gives_only_what_nobody_else_holds() -> None:
    harness = make(num_blocks=(6, 6, 6, 6), max_model_len=24)
    first = harness.open("x/1", 9, max_tokens=9)
    second = harness.open("x/2", 9, max_tokens=9)
    harness.step()
    assert [len(request.cached_blocks) for request in (first, second)] == [2, 2]
    # Four blocks are in use. The second has one to give, as the others are the first's too.
    assert harness.blocks.find_victims(first, 20) == []
    assert harness.blocks.find_victims(first, 24) == [second]
    harness.scheduler.cancel("x/2")
    harness.scheduler.check()


def test_a_preempted_request_finds_what_it_left() -> None:
    harness = make(num_blocks=(6, 6, 6, 6), max_model_len=24)
    request = harness.open("a", 10, entry_layer=8)
    harness.send("a", 0, 9)
    harness.step()
    harness.scheduler._preempt(request)
    assert harness.rows() == {"a": (8, 9)}
    # It was computed here, not found.
    assert request.num_cached == 0


def test_a_head_begins_with_packets_that_were_sent_before() -> None:
    harness = make()
    harness.open("x/1", PROMPT, is_head=True)
    finish(harness, "x/1")
    request = harness.open("x/2", PROMPT, is_head=True)
    assert request.packets == packets("x/2", COMMON)
    plan, (progress,) = harness.step()
    assert (plan.requests[0].start, progress.start) == (COMMON, COMMON)
    assert request.packets == packets("x/2", PROMPT)
    # All of it, as a head samples nothing.
    request = harness.open("x/1", PROMPT, is_head=True)
    assert (request.num_computed, request.num_pending) == (PROMPT, 0)


def test_a_head_does_not_go_on_from_packets_that_it_has_not_sent() -> None:
    harness = make(max_tokens_per_step=8)
    requests = [harness.open(request_id, 8, is_head=True) for request_id in ("x/1", "x/2")]
    harness.step()
    plan = harness.scheduler.schedule()
    other = [bytes([p]) for p in range(8)]
    harness.scheduler.update(plan, StepOutput(packets={"x/2": other}))
    harness.scheduler.check()
    first, second = requests
    assert (len(first.cached_blocks), second.cached_blocks) == (2, [])
    assert second.packets == other
    # Nor does it take them for its own when it is replayed, or cache rows that it did not encode.
    harness.scheduler._preempt(second)
    plan, _ = harness.step()
    assert (plan.requests[0].start, second.cached_blocks) == (0, [])


def test_a_request_that_brings_its_inputs_is_told_no_others() -> None:
    harness = make()
    first = harness.open("x/1", PROMPT, max_tokens=2)
    harness.step()
    second = harness.open("x/1 again", PROMPT, prefix=first.digests)
    assert (second.num_known, second.num_computed) == (PROMPT, 0)


def test_without_a_cache_nothing_is_kept() -> None:
    harness = make(prefix_cache=False)
    for _ in range(2):
        request = harness.open("x/1", PROMPT, max_tokens=1, prefix=[b"any"])
        assert finish(harness, "x/1") == PROMPT
    assert request.num_cached == 0
    assert num_cached(harness) == [0] * 4


def test_check_finds_a_user_who_is_not_counted() -> None:
    harness = make()
    harness.open("x/1", PROMPT, max_tokens=1)
    finish(harness, "x/1")
    request = harness.open("x/2", PROMPT, max_tokens=3)
    harness.step()
    request.cached_blocks[0].num_users += 1
    with pytest.raises(SchedulerError, match="2 users wrongly"):
        harness.scheduler.check()
