import os
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sliceserve.transport.rates import RateTrace, TraceError, constant_rate, read_trace

MBIT = 1e6
traces = st.lists(
    st.tuples(st.floats(0.01, 10), st.just(0.0) | st.floats(0.01, 100)), min_size=1, max_size=8
).filter(lambda steps: any(rate for _, rate in steps))


def test_a_constant_rate() -> None:
    rate = constant_rate(8.0)
    assert rate.finish(0.25, 1 * MBIT) == pytest.approx(0.375)
    assert rate.finish(7.9, 80 * MBIT) == pytest.approx(17.9)
    assert rate.finish(3.0, 0) == 3.0


def test_outages_and_repetition() -> None:
    # 2 Mbit in the first second, nothing in the second, 1 Mbit in the last two; then again.
    trace = RateTrace((1.0, 1.0, 2.0), (2.0, 0.0, 0.5))
    assert trace.finish(0.0, 2 * MBIT) == pytest.approx(1.0)
    assert trace.finish(0.0, 2.5 * MBIT) == pytest.approx(3.0)
    assert trace.finish(1.5, 1) == pytest.approx(2.0, abs=1e-5)
    assert trace.finish(0.0, 3 * MBIT) == pytest.approx(4.0)
    assert trace.finish(0.0, 4 * MBIT) == pytest.approx(4.5)
    assert trace.finish(4.5, 301 * MBIT) == pytest.approx(4.5 + 400 + 0.5)


def test_a_lap_that_starts_and_ends_with_an_outage() -> None:
    trace = RateTrace((1.0, 1.0, 1.0), (0.0, 1.0, 0.0))
    assert trace.finish(0.0, 1 * MBIT) == pytest.approx(2.0)
    assert trace.finish(2.0, 1 * MBIT) == pytest.approx(5.0)
    assert trace.finish(1.0, 1000 * MBIT) == pytest.approx(3 * 999 + 2.0)


def test_rounding_at_the_end_of_a_lap() -> None:
    # The quotient of bits and bits per lap rounds up to just above a whole number.
    trace = RateTrace((1.0, 1.0), (0.0, 91.6573488262714))
    bits = 30053 * trace.carried(2.0)
    assert trace.finish(0.0, bits) == pytest.approx(2 * 30053)


@given(traces, st.floats(0, 100), st.floats(1, 1e9))
def test_finish_is_when_the_line_has_carried_the_bits(
    steps: list[tuple[float, float]], start: float, bits: float
) -> None:
    trace = RateTrace(*map(tuple, zip(*steps, strict=True)))  # type: ignore[arg-type]
    done = trace.finish(start, bits)
    assume(done < 1e6)
    assert done >= start
    assert trace.carried(done) - trace.carried(start) == pytest.approx(bits, rel=1e-6, abs=1)


@given(traces, st.floats(0, 50), st.floats(1, 1e7), st.floats(1, 1e7))
def test_two_parts_take_as_long_as_the_whole(
    steps: list[tuple[float, float]], start: float, first: float, second: float
) -> None:
    trace = RateTrace(*map(tuple, zip(*steps, strict=True)))  # type: ignore[arg-type]
    parts = trace.finish(trace.finish(start, first), second)
    carried = trace.carried(parts) - trace.carried(trace.finish(start, first + second))
    assert carried == pytest.approx(0.0, abs=1.0)


@pytest.mark.parametrize(
    ("lengths", "rates"),
    [((), ()), ((1.0,), (0.0,)), ((0.0,), (1.0,)), ((1.0,), (-1.0,)), ((1.0,), (1.0, 2.0))],
)
def test_impossible_rates(lengths: tuple[float, ...], rates: tuple[float, ...]) -> None:
    with pytest.raises(ValueError):
        RateTrace(lengths, rates)


def test_reading_a_trace(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("t_s,up_mbps\n0.0,6.60\n0.1,0\n0.3,14.4\n")
    trace = read_trace(file)
    assert trace.mbps == (6.6, 0.0, 14.4)
    assert trace.lengths_s == pytest.approx((0.1, 0.2, 0.2))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the first line must be t_s,up_mbps"),
        ("time,rate\n0,1\n", "the first line must be t_s,up_mbps"),
        ("t_s,up_mbps\n", "two steps or more, got 0"),
        ("t_s,up_mbps\n0,1\n", "two steps or more, got 1"),
        ("t_s,up_mbps\n0,1\n1,fast\n", "line 3: expected two numbers, got '1,fast'"),
        ("t_s,up_mbps\n0,1\n1\n", "line 3: expected two numbers, got '1'"),
        ("t_s,up_mbps\n0,1\n1,2,3\n", "line 3: expected two numbers"),
        ("t_s,up_mbps\n0,1\n\n1,2\n", "line 3: expected two numbers, got ''"),
        ("t_s,up_mbps\n0,-1\n1,2\n", "line 2: expected a time and a rate of 0 or more"),
        ("t_s,up_mbps\n0,1\n1,nan\n", "line 3: expected a time and a rate of 0 or more"),
        ("t_s,up_mbps\n0,1\ninf,1\n", "line 3: expected a time and a rate of 0 or more"),
        ("t_s,up_mbps\n5,1\n6,2\n", "the first step must start at 0, got 5"),
        ("t_s,up_mbps\n0,1\n2,1\n2,1\n", "times must rise, got 2 after 2"),
        ("t_s,up_mbps\n0,0\n1,0\n", "not all of them 0"),
        ("t_s,up_mbps\n\xff\xfe,1\n", "not a CSV text file"),
        ("t_s,up_mbps\n0,\x00\n1,1\n", "line 2: expected two numbers|not a CSV text file"),
    ],
)
def test_a_malformed_trace_says_where_and_what(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(TraceError, match=says) as caught:
        read_trace(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "length_s", "mean_mbps"),
    [
        ("mahimahi_Verizon-LTE-short.up.100ms.csv", 140, 5.9),
        ("mahimahi_ATT-LTE-driving-2016.up.100ms.csv", 120, 1.9),
    ],
)
def test_measured_traces(name: str, length_s: float, mean_mbps: float) -> None:
    repository = Path(__file__).parents[2]
    shared = Path(os.environ.get("SLICESERVE_SHARED", repository.parent / "shared"))
    file = shared / "traces" / "network" / name
    if not file.exists():
        pytest.skip(f"{file} is not there; set SLICESERVE_SHARED to the folder that has traces/")
    trace = read_trace(file)
    assert sum(trace.lengths_s) == pytest.approx(length_s, rel=0.01)
    assert trace.carried(length_s) / length_s / MBIT == pytest.approx(mean_mbps, abs=0.06)
