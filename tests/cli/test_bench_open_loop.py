"""What benchmarks with arrivals calculate: traces, goodput, parts of a recording, sums of turns."""

import pytest

from sliceserve.cli.bench.fleet_messages import Outcome, Recording
from sliceserve.cli.bench.goodput import Limits, parse_limits
from sliceserve.cli.bench.open_loop import Turn, assign_arrivals, summarize_turns
from sliceserve.cli.bench.replay import part
from sliceserve.cli.bench.timeline import Timeline
from sliceserve.cli.bench.trace import (
    Arrival,
    TraceError,
    read_trace,
    scale_lengths,
    scale_time,
    thin,
)
from sliceserve.configs import ClientConfig

HEADER = "t_s,input_tokens,output_tokens\n"


def test_a_trace_is_read_in_the_order_of_arrival(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(HEADER + "1.5,20,3\n0.0000,374,44\n")
    assert read_trace(path) == [Arrival(0.0, 374, 44), Arrival(1.5, 20, 3)]


@pytest.mark.parametrize(
    ("text", "words"),
    [("t_s,input_tokens\n0,1\n", "output_tokens"), (HEADER + "0,many,1\n", "many"),
     (HEADER + "0,1\n", "expected columns t_s, input_tokens and output_tokens")],
)  # fmt: skip
def test_a_file_that_is_no_trace_is_refused(tmp_path, text, words):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(TraceError, match=words):
        read_trace(path)


def test_a_trace_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(TraceError, match="cannot read the trace"):
        read_trace(tmp_path / "nowhere.csv")


def test_thinning_keeps_about_its_share_in_order():
    arrivals = [Arrival(i / 7, 1 + i, 1) for i in range(4000)]
    kept = thin(arrivals, 0.25, 900, seed=3)
    assert len(kept) == 900
    assert kept == sorted(kept, key=lambda one: one.start_s)
    assert kept == thin(arrivals, 0.25, 900, seed=3) != thin(arrivals, 0.25, 900, seed=4)
    # Nine hundred of a quarter reach as far as 3600 of all, give or take.
    assert 3300 < kept[-1].num_prompt < 3900
    assert thin(arrivals, 1.0, 10) == arrivals[:10]


def test_a_trace_may_be_too_short():
    with pytest.raises(TraceError, match="3 are left at a share of 1; that is fewer than the 4"):
        thin([Arrival(0, 1, 1)] * 3, 1.0, 4)


def test_lengths_are_scaled_and_never_vanish():
    arrivals = [Arrival(0, 374, 44), Arrival(1, 3, 2), Arrival(2, 14050, 1000)]
    scaled = scale_lengths(arrivals, 0.125, least_prompt=4)
    assert [(one.num_prompt, one.num_output) for one in scaled] == [(47, 6), (4, 1), (1756, 125)]
    assert [one.start_s for one in scaled] == [0, 1, 2]


def test_time_is_scaled_to_a_rate_and_keeps_its_bursts():
    arrivals = [Arrival(t, 1, 1) for t in (10.0, 10.5, 12.0, 16.0)]
    scaled = [one.start_s for one in scale_time(arrivals, 2.0)]
    # Three gaps at two a second: a second and a half, a quarter of what it was.
    assert scaled == pytest.approx([0.0, 0.125, 0.5, 1.5])


def test_arrivals_of_one_moment_stay_together():
    assert scale_time([Arrival(5, 1, 1)] * 2, 2.0) == [Arrival(0, 1, 1)] * 2


@pytest.mark.parametrize(
    ("timeline", "kept"),
    [
        (Timeline(10.0, [11.0, 11.1, 11.2]), True),
        (Timeline(10.0, [11.001, 11.1]), False),
        (Timeline(10.0, [10.5, 10.7, 10.8]), False),
        (Timeline(10.0, [10.5]), True),
        (Timeline(10.0), False),
    ],
)
def test_a_request_keeps_both_limits_or_is_not_good(timeline, kept):
    assert Limits(ttft_ms=1000.0, tpot_ms=100.0001).kept_by(timeline) == kept


def test_a_limit_that_is_not_set_is_kept():
    assert Limits(tpot_ms=1000).kept_by(Timeline(0, [500.0, 500.5]))
    assert Limits(ttft_ms=1000).goodput([Timeline(0, [0.5]), Timeline(0, [1.5])], 4.0) == 0.25


def test_limits_are_read_as_vllm_names_them():
    assert parse_limits("ttft:1000, tpot:62.5") == Limits(ttft_ms=1000, tpot_ms=62.5)
    assert parse_limits("tpot:100") == Limits(tpot_ms=100)


@pytest.mark.parametrize("text", ["", "ttft", "ttft:soon", "e2el:1000", "ttft:0", "tpot:nan"])
def test_limits_that_mean_nothing_are_refused(text):
    with pytest.raises(ValueError, match="expected limits in milliseconds"):
        parse_limits(text)


RECORDING = Recording(
    8, 2, [bytes([i]) for i in range(9)], [102, 103, 104, 105, 106, 107, 108, 109]
)


def test_a_part_of_a_recording_is_what_its_tokens_would_have_been_answered_with():
    assert part(RECORDING, 2, 8) == RECORDING
    short = part(RECORDING, 5, 3)
    assert (short.num_prompt, short.tokens) == (5, [105, 106, 107])
    # Seven positions: the last token's own packet is never sent.
    assert short.packets == RECORDING.packets[:7]


@pytest.mark.parametrize(("num_prompt", "num_output"), [(1, 3), (5, 6), (5, 0), (10, 1)])
def test_nothing_is_answered_that_was_not_recorded(num_prompt, num_output):
    with pytest.raises(ValueError, match="no part of a recording of 2 \\+ 8"):
        part(RECORDING, num_prompt, num_output)


def test_every_arrival_is_a_client_with_its_own_lengths():
    arrivals = [Arrival(0.0, 3, 2), Arrival(0.25, 1, 4)]
    assignment = assign_arrivals(ClientConfig(), RECORDING, arrivals)
    assert [(c.index, c.cut, c.start_s) for c in assignment.clients] == [(0, 8, 0.0), (1, 8, 0.25)]
    told = [assignment.recordings[c.replays[0]] for c in assignment.clients]
    # The recorded prompt is the least there can be.
    assert [(one.num_prompt, len(one.tokens)) for one in told] == [(3, 2), (2, 4)]


def test_turns_are_summed_over_requests():
    arrivals = [Arrival(0, 10, 2), Arrival(0, 99, 2)]

    def turn(short_ttft_s, code=None):
        outcomes = [
            Outcome(client=0, cut=8, timeline=Timeline(0, [short_ttft_s, short_ttft_s + 0.1])),
            Outcome(client=1, cut=8, timeline=Timeline(0, [5.0, 5.5]), num_mismatches=1),
        ]
        outcomes[1].code = code
        return Turn(seconds=10.0, busy_s=6.0, outcomes=outcomes)

    turns = [turn(1.0), turn(3.0, code="overloaded")]
    result = summarize_turns(turns, arrivals, Limits(ttft_ms=5000, tpot_ms=200), short_tokens=10)
    assert (result["num_requests"], result["errors"]) == (4, {"overloaded": 1})
    assert result["num_mismatched_tokens"] == 2
    assert result["server_busy_share"] == 0.6
    assert result["tokens_per_s"] == 8 / 20
    assert result["goodput_rps"] == 2 / 20
    assert result["good_share"] == 0.5
    assert result["short_ttft_ms"]["p50"] == pytest.approx(2000)
    assert result["long_ttft_ms"]["p50"] == pytest.approx(5000)
