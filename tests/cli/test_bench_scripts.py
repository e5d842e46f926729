"""What the scripts in benchmarks/ calculate."""

import importlib.util
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from sliceserve.cli.bench.fleet_messages import Outcome, Recording
from sliceserve.cli.bench.goodput import Limits
from sliceserve.cli.bench.open_loop import Turn, assign_arrivals
from sliceserve.cli.bench.timeline import Timeline
from sliceserve.cli.bench.trace import Arrival
from sliceserve.configs import ClientConfig, ModelConfig

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
NUM_LAYERS = 30
CUTS = (0, 8, 15, 22)


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def turn(*ttfts_s, seconds=10.0):
    """Requests 0, 1 … with these TTFTs and one more token, half a second later."""
    outcomes = [
        Outcome(client=i, cut=8, timeline=Timeline(0, [ttft_s, ttft_s + 0.5]))
        for i, ttft_s in enumerate(ttfts_s)
    ]
    return Turn(seconds, seconds / 2, outcomes)


@pytest.fixture(scope="module")
def ragged():
    return script("ragged_depth")


def modelled_seconds(mix):
    """A pass that pays something once, and for each layer by its width."""
    width = [sum(n for cut, n in mix.items() if cut <= layer) for layer in range(NUM_LAYERS)]
    return 3.0 + sum(1.0 + 0.1 * w + 0.01 * w * w for w in width if w)


def test_a_pass_without_a_cost_of_mixing_takes_what_its_stages_predict(ragged):
    mix = ragged.mixed(CUTS, ragged.Shape(16, 1, 128))
    seconds = {
        (cut, count): modelled_seconds({cut: count})
        for cut, count in ragged.uniform_batches(mix, NUM_LAYERS)
    }
    assert ragged.predict_by_stages(mix, seconds) == pytest.approx(modelled_seconds(mix))


def test_a_pass_that_pays_by_rows_and_layers_takes_what_equal_work_predicts(ragged):
    mix = {0: 5, 8: 3, 22: 11}
    seconds = {
        (cut, count): 0.25 * ragged.layer_requests({cut: count}, NUM_LAYERS)
        for cut, count in ragged.uniform_batches(mix, NUM_LAYERS)
    }
    predicted = ragged.predict_by_work(mix, NUM_LAYERS, seconds)
    assert predicted == pytest.approx(0.25 * (5 * 30 + 3 * 22 + 11 * 8))


def test_batches_of_equal_work(ragged):
    mix = ragged.mixed(CUTS, ragged.Shape(16, 1, 128))
    assert ragged.layer_requests(mix, NUM_LAYERS) == 16 * (30 + 22 + 15 + 8)
    assert ragged.widths(mix) == {0: 16, 8: 32, 15: 48, 22: 64}
    assert [ragged.of_equal_work(mix, cut, NUM_LAYERS) for cut in CUTS] == [40, 55, 80, 150]


def test_ratios_are_taken_within_a_turn(ragged):
    mix, shape = {0: 1, 15: 1}, ragged.Shape(1, 1, 16)
    alone = {
        (cut, count): modelled_seconds({cut: count})
        for cut, count in ragged.uniform_batches(mix, NUM_LAYERS)
    }
    twice_as_slow = {batch: 2 * seconds for batch, seconds in alone.items()}
    taken = modelled_seconds(mix)
    turns = [(1.1 * taken, alone), (2.2 * taken, twice_as_slow), (9 * taken, alone)]
    result = ragged.summarize(mix, NUM_LAYERS, shape, turns)
    assert result["mixed_vs_stages"] == pytest.approx(1.1)
    assert result["layer_rows"] == 45


def test_batches_of_any_mix_are_passed_through_a_model(ragged, tiny_model):
    shape = ragged.Shape(2, 3, 16)
    result = ragged.measure(ModelConfig(model=tiny_model, device="cpu"), (0, 2, 4), shape, 1)
    assert result["layer_rows"] == 2 * 3 * (6 + 4 + 2)
    assert result["mixed_ms"] > 0


def test_policies_are_compared_with_the_first():
    compare = script("trace_replay").compare
    # The first prompt alone is short.
    arrivals = [Arrival(0, 10, 2), Arrival(0, 500, 2)]
    turns = {
        "fcfs": [turn(2.0, 3.0), turn(4.0, 3.0)],
        "other": [turn(1.0, 6.0), turn(1.0, 6.0, seconds=30.0)],
    }
    fcfs, other = compare(turns, arrivals, Limits(ttft_ms=1000), short_tokens=10)
    assert (fcfs["policy"], other["policy"]) == ("fcfs", "other")
    assert fcfs["ratios"]["short_ttft_p95_by_turn"] == [1.0, 1.0]
    assert other["ratios"]["short_ttft_p95_by_turn"] == pytest.approx([0.5, 0.25])
    assert other["ratios"]["short_ttft_p95"] == pytest.approx(1.0 / 3.9)
    assert other["ratios"]["tokens_per_s"] == pytest.approx(0.5)
    assert other["goodput_rps"] == pytest.approx(2 / 40)


def test_a_tenant_is_compared_with_itself_alone():
    tenants = script("tenants")
    nothing = [turn(), turn()]
    turns = {
        "alone": [turn(1.0), turn(3.0)],
        "alone flood": nothing,
        "fair": [turn(1.5), turn(3.0)],
        "fair flood": [turn(5.0, 5.0), turn(5.0, 5.0)],
        "fcfs": [turn(9.0), turn(9.0)],
        "fcfs flood": nothing,
    }
    result = tenants.compare(turns, [Arrival(0, 64, 2)])
    assert result["alone"]["p95_vs_alone"] == 1
    assert result["fair"]["p95_vs_alone_by_turn"] == pytest.approx([1.5, 1.0])
    assert result["fcfs"]["p95_vs_alone"] == pytest.approx(9.0 / 2.9)
    assert result["fair"]["flood_tokens_per_s"] == pytest.approx(8 / 20)


def test_a_flood_lasts_until_the_last_quiet_request_has_come():
    tenants = script("tenants")
    arrivals = tenants.now_and_then(20, 2.0, num_prompt=3, num_output=2, seed=1)
    gaps = [after - before for before, after in pairwise([0, *(one.start_s for one in arrivals)])]
    assert all(1.0 <= gap <= 3.0 for gap in gaps)
    assert len(set(gaps)) == 20
    recording = Recording(8, 2, [b""] * 9, list(range(8)))
    quiet = assign_arrivals(ClientConfig(api_key="quiet"), recording, arrivals)
    flood = tenants.flood(ClientConfig(api_key="flood"), quiet, 3)
    assert flood.config.api_key == "flood"
    assert [client.index for client in flood.clients] == [20, 21, 22]
    assert {client.stop_s for client in flood.clients} == {arrivals[-1].start_s}
    assert {len(flood.recordings[i].tokens) for c in flood.clients for i in c.replays} == {2}
