"""What the scripts in benchmarks/ calculate."""

import importlib.util
import sys
from pathlib import Path

import pytest

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
