"""Who is let in, who waits, and for how many packets there is room."""

import pytest
from scheduler_harness import Harness

from sliceserve.scheduler.errors import RequestRefused


def open_tail(harness: Harness, name: str, num_prompt: int = 4, **options):
    return harness.open(name, num_prompt, entry_layer=15, may_queue=True, **options)


def supplied(harness: Harness) -> list[str]:
    return [request.request_id for request in harness.scheduler.supply()]


def test_who_finds_no_place_waits_without_credit_in_order() -> None:
    harness = Harness(max_requests=2)
    for name in "abcd":
        open_tail(harness, name)
    stats = harness.scheduler.stats
    assert (stats.num_live, stats.num_queued) == (2, 2)
    assert [harness.scheduler.get(name).credit for name in "abcd"] == [20, 20, 0, 0]
    assert supplied(harness) == []
    with pytest.raises(RequestRefused, match="credit reaches 0") as refused:
        harness.send("c", 0, 1)
    assert refused.value.code == "protocol_error"
    harness.scheduler.cancel("b")
    assert supplied(harness) == ["c"]
    harness.send("c", 0, 4)
    assert harness.rows() == {"c": (0, 4)}
    harness.scheduler.cancel("d")
    harness.scheduler.cancel("a")
    assert supplied(harness) == []


def test_one_that_must_not_wait_does_not_pass_those_who_do() -> None:
    harness = Harness(max_requests=1, max_queued=1)
    open_tail(harness, "a")
    open_tail(harness, "b")
    with pytest.raises(RequestRefused, match="all 1 places are taken, and 1 requests wait already"):
        open_tail(harness, "c")
    harness.scheduler.cancel("a")
    with pytest.raises(RequestRefused, match="all 1 places") as refused:
        harness.open("thin", 4)
    assert refused.value.code == "overloaded"
    assert supplied(harness) == ["b"]


def test_a_tenant_keeps_to_its_places_and_holds_nobody_up() -> None:
    harness = Harness(max_requests=3, tenant_max_requests={"a": 1}, max_queued=1)
    open_tail(harness, "a1", tenant="a")
    open_tail(harness, "a2", tenant="a")
    with pytest.raises(RequestRefused, match="all 1 places of tenant 'a' are taken"):
        open_tail(harness, "a3", tenant="a")
    harness.open("b1", 4, tenant="b")
    assert open_tail(harness, "b2", tenant="b").credit > 0
    harness.scheduler.cancel("b1")
    assert supplied(harness) == []
    harness.scheduler.cancel("a1")
    assert supplied(harness) == ["a2"]


@pytest.mark.parametrize(("policy", "expected"), [("fcfs", "a3"), ("fair", "b1")])
def test_who_waits_is_admitted_in_the_policys_order(policy: str, expected: str) -> None:
    harness = Harness(max_requests=1, policy=policy)
    for name in ("a1", "a2", "a3", "b1"):
        open_tail(harness, name, tenant=name[0])
    harness.scheduler.cancel("a2")
    harness.scheduler.cancel("a1")
    assert supplied(harness) == [expected]


def test_in_the_worst_case_nobody_is_preempted() -> None:
    harness = Harness((8, 8, 8, 8), max_model_len=32, admission="worst-case")
    # 3 and 4 blocks of 4 tokens; the next one's 2 would not fit beside them.
    harness.open("a", 4, max_tokens=8)
    harness.open("b", 4, entry_layer=15, max_tokens=12)
    with pytest.raises(RequestRefused, match="no room beside what is promised"):
        harness.open("c", 4, max_tokens=4)
    # Layers that b does not pass are free, but c passes those that it does.
    assert open_tail(harness, "d", 4, max_tokens=4).credit == 0
    harness.send("b", 0, 4)
    while harness.scheduler.get("a") is not None:
        harness.step()
    assert supplied(harness) == ["d"]
    assert harness.scheduler.stats.num_preempted_total == 0


def test_full_store_feeds_the_first_alone() -> None:
    # 16 positions of 64 bytes at least are reserved for each.
    harness = Harness(max_packet_bytes=2 * 16 * 64)
    first, second, third = (open_tail(harness, name) for name in "abc")
    assert [first.credit, second.credit, third.credit] == [16, 16, 0]
    # A packet that has come takes its own size alone, so some room comes back, too little for c.
    harness.send("b", 0, 4)
    harness.step()
    harness.send("b", 4, 5)
    harness.step()
    assert (second.credit, third.credit) == (16, 0)
    # The first gets what it needs, whatever the store holds.
    harness.send("a", 0, 4)
    for position in range(4, 40):
        harness.step()
        harness.scheduler.supply()
        harness.send("a", position, position + 1)
    assert first.credit > 40
    harness.scheduler.cancel("b")
    harness.scheduler.cancel("a")
    assert supplied(harness) == ["c"]
    assert third.credit == 16


def test_those_short_of_credit_get_it_in_order() -> None:
    harness = Harness(max_packet_bytes=16 * 64)
    requests = [open_tail(harness, name) for name in "abcd"]
    assert [request.credit for request in requests] == [16, 0, 0, 0]
    harness.scheduler.cancel("a")
    assert supplied(harness) == ["b"]
    harness.scheduler.cancel("c")
    harness.scheduler.cancel("b")
    assert supplied(harness) == ["d"]


def test_uploads_share_what_room_there_is() -> None:
    """A long prompt does not take all that is left, but a sixteenth at a time."""
    harness = Harness(max_packet_bytes=64 * 64 * 16, max_model_len=200)
    request = open_tail(harness, "a", 150)
    assert request.credit == 64
    harness.send("a", 0, 64)
    harness.step()
    assert request.credit > 120
