"""Fifty requests that do not fit together say what they say when they do."""

import random

import pytest
from driving import SplitRun
from msgspec.structs import replace

from sliceserve.configs import SamplingParams

CUTS = (1, 3)
NUM_REQUESTS = 50
SAMPLING = SamplingParams(max_tokens=10, temperature=0.9, ignore_eos=True)


def requests(kinds):
    """Prompt, cut (0 is not split) and sampling of each."""
    rng = random.Random(5)
    for i in range(NUM_REQUESTS):
        prompt = [rng.randrange(3, 300) for _ in range(rng.randrange(1, 30))]
        yield prompt, kinds[i % len(kinds)], replace(SAMPLING, seed=i)


@pytest.fixture(scope="module")
def expected():
    """Tokens by the kinds of requests, from engines with room for all."""
    return {}


def run(make_engine, kinds, **tail):
    heads = {cut: make_engine(stop=cut, num_tokens=4096) for cut in kinds if cut}
    run = SplitRun(make_engine(cuts=CUTS, max_tokens_per_step=64, **tail), heads)
    for i, (prompt, cut, sampling) in enumerate(requests(kinds)):
        run.open(str(i), prompt, cut, sampling)
    most_bytes = most_queued = 0
    while run.step():
        stats = run.tail.stats()
        most_bytes = max(most_bytes, stats.held_packet_bytes)
        most_queued = max(most_queued, stats.num_queued)
    assert set(run.finish_reasons.values()) == {"length"}
    return run.tokens, stats, most_bytes, most_queued


@pytest.mark.parametrize(
    ("kinds", "limits"),
    [
        ((0, 1, 3), {"num_tokens": 160}),
        ((1, 3), {"num_tokens": 160, "admission": "worst-case"}),
        ((1, 3), {"num_tokens": 4096, "max_packet_bytes": 60_000}),
        ((1, 3), {"num_tokens": 160, "max_packet_bytes": 60_000, "max_requests": 9}),
    ],
    ids=["preempted", "by worst case", "few packets", "all of it"],
)
def test_short_of_memory_nothing_changes_but_time(make_engine, expected, kinds, limits):
    if kinds not in expected:
        expected[kinds] = run(make_engine, kinds, num_tokens=4096)[0]
    tokens, stats, most_bytes, most_queued = run(make_engine, kinds, **limits)
    assert tokens == expected[kinds]
    is_preempted = limits["num_tokens"] == 160 and "admission" not in limits
    assert (stats.num_preempted_total > 0) == is_preempted
    assert (most_queued > 0) == ("admission" in limits or "max_requests" in limits)
    # One more request of 40 packets at most, of 72 float32.
    assert most_bytes <= limits.get("max_packet_bytes", most_bytes) + 40 * 4 * 72
