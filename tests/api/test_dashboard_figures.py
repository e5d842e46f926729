"""What the dashboard computes from /metrics."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families

from sliceserve.api.dashboard.figures import Counts, KvBlocks, Rates, State
from sliceserve.api.dashboard.readings import Readings, quantile

_BEFORE = """
sliceserve:generation_tokens_total{path="split",tenant="a"} 100.0
sliceserve:generation_tokens_total{path="thin",tenant="a"} 10.0
sliceserve:engine_steps_total 20.0
sliceserve:engine_tokens_total 400.0
sliceserve:engine_busy_seconds_total 5.0
sliceserve:iteration_requests_sum 100.0
sliceserve:split_uplink_bytes_total 1000.0
sliceserve:split_uplink_fp16_bytes_total 10000.0
sliceserve:split_uplink_tokens_total 10.0
sliceserve:token_time_seconds_total{path="split",part="head"} 1.0
sliceserve:token_time_tokens_total{path="split",part="head"} 10.0
sliceserve:token_time_seconds_total{path="split",part="queue"} 1.0
sliceserve:token_time_tokens_total{path="split",part="queue"} 10.0
sliceserve:request_errors_total{path="thin",code="overloaded"} 1.0
sliceserve:time_to_first_token_seconds_bucket{path="thin",tenant="a",le="0.1"} 4.0
sliceserve:time_to_first_token_seconds_bucket{path="thin",tenant="a",le="0.2"} 4.0
sliceserve:time_to_first_token_seconds_bucket{path="thin",tenant="a",le="+Inf"} 4.0
"""

_NOW = """
sliceserve:generation_tokens_total{path="split",tenant="a"} 130.0
sliceserve:generation_tokens_total{path="split",tenant="b"} 20.0
sliceserve:generation_tokens_total{path="thin",tenant="a"} 20.0
sliceserve:engine_steps_total 30.0
sliceserve:engine_tokens_total 600.0
sliceserve:engine_busy_seconds_total 9.0
sliceserve:iteration_requests_sum 150.0
sliceserve:split_uplink_bytes_total 2500.0
sliceserve:split_uplink_fp16_bytes_total 20000.0
sliceserve:split_uplink_tokens_total 20.0
sliceserve:token_time_seconds_total{path="split",part="head"} 1.5
sliceserve:token_time_tokens_total{path="split",part="head"} 20.0
sliceserve:token_time_seconds_total{path="split",part="queue"} 1.0
sliceserve:token_time_tokens_total{path="split",part="queue"} 10.0
sliceserve:token_time_seconds_total{path="thin",part="queue"} 7.0
sliceserve:token_time_tokens_total{path="thin",part="queue"} 1.0
sliceserve:request_errors_total{path="thin",code="overloaded"} 1.0
sliceserve:request_errors_total{path="split",code="overloaded"} 2.0
sliceserve:request_errors_total{path="thin",code="invalid_value"} 1.0
sliceserve:time_to_first_token_seconds_bucket{path="thin",tenant="a",le="0.1"} 4.0
sliceserve:time_to_first_token_seconds_bucket{path="thin",tenant="a",le="0.2"} 5.0
sliceserve:time_to_first_token_seconds_bucket{path="thin",tenant="a",le="+Inf"} 5.0
sliceserve:time_to_first_token_seconds_bucket{path="split",tenant="b",le="0.1"} 1.0
sliceserve:time_to_first_token_seconds_bucket{path="split",tenant="b",le="0.2"} 2.0
sliceserve:time_to_first_token_seconds_bucket{path="split",tenant="b",le="+Inf"} 2.0
sliceserve:split_sessions{cut="8"} 3.0
sliceserve:split_sessions{cut="15"} 0.0
sliceserve:num_requests_live 7.0
sliceserve:num_requests_running 2.0
sliceserve:num_requests_queued 4.0
sliceserve:num_requests_waiting 5.0
sliceserve:num_requests_detached 1.0
sliceserve:kv_blocks{segment="0-8"} 64.0
sliceserve:kv_blocks{segment="8-30"} 32.0
sliceserve:kv_blocks_used{segment="0-8"} 5.0
sliceserve:kv_blocks_used{segment="8-30"} 6.0
sliceserve:kv_blocks_cached{segment="0-8"} 1.0
sliceserve:kv_blocks_cached{segment="8-30"} 0.0
sliceserve:api_workers 2.0
sliceserve:start_time_seconds 1000.0
"""


def read(text):
    return Readings(text_string_to_metric_families(text))


def counts(text, seconds):
    return Counts.of(read(text), seconds)


def test_rates_are_of_what_was_counted_in_between():
    rates = Rates.of(counts(_NOW, 60.0).since(counts(_BEFORE, 50.0)))
    assert rates.seconds == 10
    assert (rates.split_tokens, rates.thin_tokens, rates.tokens_per_s) == (50, 10, 6)
    assert (rates.requests_per_step, rates.rows_per_step, rates.busy) == (5, 20, 0.4)
    assert (rates.uplink_bytes_per_token, rates.fp16_bytes_per_token) == (150, 1000)
    # Nobody has told of the queue since; thin requests have no device to be compared with.
    assert rates.parts == {"head": 0.05}
    assert rates.errors == {"overloaded": 2, "invalid_value": 1}
    assert rates.first_token.count == 3
    assert rates.first_token.p50 == pytest.approx(0.125)


def test_rates_since_start_are_of_everything():
    rates = Rates.of(counts(_NOW, 60.0))
    assert (rates.split_tokens, rates.thin_tokens) == (150, 20)
    assert rates.uplink_bytes_per_token == 125
    assert rates.parts == {"head": 0.075, "queue": 0.1}
    assert rates.errors == {"overloaded": 3, "invalid_value": 1}
    assert rates.first_token.count == 7


def test_means_of_nothing_are_none():
    now = counts(_NOW, 60.0)
    rates = Rates.of(now.since(now))
    assert rates.tokens_per_s is rates.busy is rates.rows_per_step is None
    assert rates.uplink_bytes_per_token is rates.prefix_hit_rate is None
    assert rates.parts == {}
    assert (rates.inter_token.count, rates.inter_token.p50) == (0, None)


def test_the_state_is_that_of_the_gauges():
    state = State.of(read(_NOW), at=1500.0, draining=True)
    assert (state.uptime, state.workers, state.draining) == (500, 2, True)
    assert state.sessions == {"8": 3, "15": 0}
    assert (state.live, state.running, state.detached) == (7, 2, 1)
    # As vLLM's name has it, those that wait include those that are queued; here they are apart.
    assert (state.queued, state.waiting) == (4, 1)
    assert state.kv == [
        KvBlocks(segment="0-8", num_blocks=64, num_used=5, num_cached=1),
        KvBlocks(segment="8-30", num_blocks=32, num_used=6, num_cached=0),
    ]


@given(
    st.lists(st.floats(0.0, 30.0), min_size=1, max_size=50),
    st.floats(0.01, 1.0),
)
def test_a_quantile_is_in_the_bucket_of_the_observation(values, share):
    bounds = (0.5, 1.0, 2.5, 5.0, 10.0)
    histogram = Histogram("h", "", buckets=bounds, registry=(registry := CollectorRegistry()))
    for value in values:
        histogram.observe(value)
    got = quantile(share, Readings(registry.collect()).buckets("h"))
    # The first observation that at least this share is not above.
    exact = next(v for i, v in enumerate(sorted(values), 1) if i >= share * len(values) - 1e-9)
    low = max([0.0, *(bound for bound in bounds if bound < exact)])
    high = min([bound for bound in bounds if bound >= exact], default=low)
    assert low <= got <= high


def test_a_quantile_divides_a_bucket_as_prometheus_does():
    buckets = {1.0: 0.0, 2.0: 10.0, 4.0: 10.0, float("inf"): 20.0}
    assert quantile(0.25, buckets) == 1.5
    assert quantile(0.5, buckets) == 2
    assert quantile(0.9, buckets) == 4
    assert quantile(0.5, {}) is quantile(0.5, {1.0: 0.0, float("inf"): 0.0}) is None
