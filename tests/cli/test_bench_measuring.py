"""What benchmarks measure with: timelines, workloads, sums. No model, no process."""

import asyncio
import json

import pytest
from typer.testing import CliRunner

from sliceserve.cli import app
from sliceserve.cli.bench.backends import stats_between
from sliceserve.cli.bench.fleet_messages import Outcome, Recording
from sliceserve.cli.bench.options import numbers
from sliceserve.cli.bench.report import finish, make_table
from sliceserve.cli.bench.serve import Load, assign, summarize
from sliceserve.cli.bench.timeline import Timeline, latencies, summarize_ms
from sliceserve.cli.bench.workload import Workload, run_requests
from sliceserve.client.stats import RequestStats
from sliceserve.configs import ClientConfig
from sliceserve.engine.generation import Generated, GenerationError
from sliceserve.scheduler.plan import SampledToken

WORK = Workload(num_prompts=5, input_len=7, output_len=3, seed=1)


def test_a_timeline_tells_ttft_tpot_and_itl():
    timeline = Timeline(10.0, [12.0, 12.5, 14.0])
    assert timeline.ttft_s == 2.0
    assert timeline.tpot_s == 1.0
    assert timeline.itl_s == [0.5, 1.5]


@pytest.mark.parametrize(("tokens", "ttft_s"), [([], None), ([3.0], 2.0)])
def test_too_few_tokens_have_no_gaps(tokens, ttft_s):
    timeline = Timeline(1.0, tokens)
    assert (timeline.ttft_s, timeline.tpot_s, timeline.itl_s) == (ttft_s, None, [])


def test_percentiles_are_interpolated():
    summary = summarize_ms([i / 1e3 for i in range(101)])
    assert summary == pytest.approx({"mean": 50, "p50": 50, "p95": 95, "p99": 99})
    assert summarize_ms([0.0, 0.001])["p95"] == pytest.approx(0.95)
    assert summarize_ms([]) is None


def test_latencies_pool_the_gaps_of_all_requests():
    pooled = latencies(
        [Timeline(0, [1, 2]), Timeline(0, [3, 3.5, 4]), Timeline(0), Timeline(0, [8])]
    )
    assert pooled["ttft_ms"]["mean"] == pytest.approx(4000)
    assert pooled["tpot_ms"]["mean"] == pytest.approx(750)
    assert pooled["itl_ms"]["mean"] == pytest.approx(2000 / 3)


def test_prompts_have_the_exact_length_and_stay_in_the_vocabulary():
    prompts = WORK.prompts(vocab_size=4)
    assert [len(prompt) for prompt in prompts] == [7] * 5
    assert {token for prompt in prompts for token in prompt} == {0, 1, 2, 3}


def test_a_prompt_depends_on_seed_and_number_alone():
    one = WORK.prompts(1000)
    more = Workload(num_prompts=9, input_len=7, output_len=99, seed=1).prompts(1000)
    other = Workload(num_prompts=5, input_len=7, output_len=3, seed=2).prompts(1000)
    assert more[:5] == one
    assert len({tuple(prompt) for prompt in one + other}) == 10


def test_answers_have_a_fixed_length():
    assert (WORK.num_output_tokens, WORK.num_tokens) == (15, 50)
    assert WORK.sampling.max_tokens == 3
    assert WORK.sampling.ignore_eos
    assert WORK.sampling.temperature == 0


def test_warming_up_shows_no_measured_prompt():
    warm = WORK.warm_up(concurrency=2)
    assert warm.num_prompts == 2
    assert not {*map(tuple, warm.prompts(1000))} & {*map(tuple, WORK.prompts(1000))}


class Parrot:
    """Answers with ``max_tokens`` tokens, or fails for an empty prompt. Counts what is live."""

    max_model_len = 100

    def __init__(self):
        self.num_live = self.most_live = 0

    async def generate(self, prompt, sampling, caller=None):
        self.num_live += 1
        self.most_live = max(self.most_live, self.num_live)
        try:
            if not prompt:
                raise GenerationError("invalid_request", "no prompt")
            for i in range(sampling.max_tokens):
                await asyncio.sleep(0)
                yield Generated(SampledToken(i))
        finally:
            self.num_live -= 1


@pytest.mark.parametrize(("concurrency", "most_live"), [(1, 1), (3, 3), (64, 5)])
async def test_requests_run_as_many_at_a_time_as_asked(concurrency, most_live):
    parrot, tokens = Parrot(), []
    timelines = await run_requests(
        parrot, WORK.prompts(10), WORK.sampling, concurrency, lambda: tokens.append(1)
    )
    assert parrot.most_live == most_live
    assert [len(timeline.tokens) for timeline in timelines] == [3] * 5
    assert len(tokens) == 15
    for timeline in timelines:
        assert timeline.start <= timeline.tokens[0] <= timeline.tokens[-1]


async def test_the_first_failure_ends_the_run():
    parrot = Parrot()
    with pytest.raises(GenerationError, match="no prompt"):
        await run_requests(parrot, [[1], [], [1]], WORK.sampling, 2, lambda: None)
    assert parrot.num_live == 0


def test_stats_between_two_moments():
    before = RequestStats(num_tokens=2, head_s=0.5)
    after = RequestStats(num_tokens=5, head_s=2.0, bytes_up=9)
    assert stats_between(before, after) == RequestStats(num_tokens=3, head_s=1.5, bytes_up=9)


def test_clients_prompts_and_cuts_are_dealt_out():
    work = Workload(num_prompts=10, input_len=2, output_len=3)
    prompts = work.prompts(100)
    load = Load(num_clients=5, requests_per_client=2, num_processes=2)
    assignments = assign(ClientConfig(), work, load, (8, 15), prompts, [])
    clients = sorted((c for one in assignments for c in one.clients), key=lambda c: c.index)
    assert [len(one.clients) for one in assignments] == [3, 2]
    assert [client.cut for client in clients] == [8, 15, 8, 15, 8]
    assert [prompt for client in clients for prompt in client.prompts] == prompts
    assert [sum(c.num_requests for c in one.clients) for one in assignments] == [6, 4]


def test_recordings_are_dealt_out_by_cut():
    work = Workload(num_prompts=8, input_len=2, output_len=3)
    recordings = [Recording(cut, 2, [], []) for cut in (8, 8, 8, 15, 15)]
    load = Load(num_clients=4, requests_per_client=2, num_recordings=3)
    (one,) = assign(ClientConfig(), work, load, (8, 15), [], recordings)
    for client in one.clients:
        assert client.num_requests == 2
        assert {recordings[i].cut for i in client.replays} == {client.cut}
    assert {i for client in one.clients for i in client.replays} == {0, 1, 2, 3, 4}


def test_failed_requests_count_as_errors_and_not_as_latency():
    fine = Outcome(client=0, cut=8, timeline=Timeline(0, [1, 2]), num_packets=4, bytes_up=400)
    wrong = Outcome(client=1, cut=8, timeline=Timeline(0, [50]), num_mismatches=1)
    wrong.code, wrong.error = "overloaded", "too many"
    summary = summarize([fine, wrong], seconds=2.0)
    assert (summary["num_requests"], summary["num_errors"]) == (2, 1)
    assert (summary["errors"], summary["first_error"]) == ({"overloaded": 1}, "too many")
    assert summary["num_mismatched_tokens"] == 1
    assert summary["tokens_per_s"] == 1.5
    assert summary["uplink_bytes_per_token"] == 100
    assert summary["ttft_ms"]["p99"] == pytest.approx(1000)


def test_json_alone_is_on_stdout(capsys):
    table = make_table("a title", ["name", "value"], [["one", 1.0], ["none", None]])
    finish([{"a": 1}], True, table)
    finish([{"a": 1}, {"a": 2}], True)
    out, err = capsys.readouterr()
    assert out.splitlines() == ['{"a":1}', '{"results":[{"a":1},{"a":2}]}']
    assert "a title" in err


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1234"), (12.34, "12.3"), (1.234, "1.23"), (0.5, "0.500"), (2e-5, "2.0e-05"),
     (0.0, "0.000"), (7, "7"), ("x", "x"), (None, "–")],
)  # fmt: skip
def test_numbers_are_short(capsys, value, text):
    finish([{}], False, make_table("", ["name", "value"], [["row", value]]))
    assert f" {text} " in capsys.readouterr().out


def test_lists_of_numbers():
    assert numbers("8, 15,22") == [8, 15, 22]


@pytest.mark.parametrize("command", ["throughput", "latency", "serve", "codec"])
def test_every_benchmark_explains_itself(command):
    result = CliRunner().invoke(app, ["bench", command, "--help"])
    assert result.exit_code == 0
    assert f"bench {command}" in result.stdout


@pytest.mark.parametrize(
    "args",
    [["speed"], ["throughput", "--backend", "vllm"], ["throughput", "--num-prompts", "0"],
     ["serve", "--splits", "8;15"], ["codec", "--hidden-size", "big"]],
)  # fmt: skip
def test_wrong_usage_is_exit_code_2(args):
    result = CliRunner().invoke(app, ["bench", *args])
    assert result.exit_code == 2
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["throughput", "--model", "./nowhere"], 1, "nowhere"),
        (["codec", "--codec", "zip"], 2, "codec.name must be calibrated or slicer"),
        (["serve", "--server", "http://127.0.0.1:9"], 1, "cannot read http://127.0.0.1:9/v1/spl"),
    ],
)
def test_a_foreseen_error_is_a_sentence(args, code, words):
    result = CliRunner().invoke(app, ["bench", *args, "--json"])
    assert result.exit_code == code
    assert result.stdout == ""
    assert words in result.stderr


def test_an_outcome_survives_its_journey():
    import msgspec

    outcome = Outcome(client=3, cut=8, timeline=Timeline(1.5, [2.5]), num_packets=2)
    line = msgspec.json.encode(outcome)
    assert json.loads(line)["timeline"] == {"start": 1.5, "tokens": [2.5]}
    assert msgspec.json.decode(line, type=Outcome) == outcome
