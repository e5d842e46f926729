"""Tasks from file to accuracy."""

import json
import random

import pytest

from sliceserve.configs import CodecConfig, SlicerConfig
from sliceserve.evaluation import scoring
from sliceserve.evaluation.accuracy import task_accuracy
from sliceserve.evaluation.points import Sweep
from sliceserve.evaluation.tasks import NUM_SHOTS, TASKS


def words(rng, n):
    return " ".join(f"w{rng.randrange(3, 300)}" for _ in range(n))


@pytest.fixture
def folder(tmp_path):
    rng = random.Random(0)
    choices = [
        {
            "question": words(rng, rng.randrange(1, 20)),
            "choices": [words(rng, rng.randrange(1, 9)) for _ in range(rng.randrange(2, 5))],
            "answer": rng.randrange(2),
        }
        for _ in range(40)
    ]
    numbers = [
        {"question": words(rng, 4), "solution": words(rng, 4), "answer": "1"}
        for _ in range(NUM_SHOTS + 3)
    ]
    for name, lines in (("piqa", choices), ("gsm8k", numbers)):
        path = tmp_path / TASKS[name].file
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_a_lossless_codec_answers_the_same(whole, folder):
    sweep = Sweep([2, 4], [CodecConfig(name="float32")])
    results = task_accuracy(whole, TASKS["piqa"], folder, None, sweep)
    assert [result["split"] for result in results] == [2, 4]
    for result in results:
        assert (result["task"], result["num_items"], result["codec"]) == ("piqa", 40, "float32/1")
        assert result["packet_bits_per_element"] == 32
        for values in result["metrics"].values():
            assert values["difference"] == values["ci95"] == 0
            assert 0 < values["coded"] == values["uncompressed"] < 1


def test_a_bad_codec_answers_otherwise(whole, folder, monkeypatch):
    coarse = CodecConfig(name="slicer", slicer=SlicerConfig(sparsity=0.98, distortion=1.0))
    sweep = Sweep([3], [CodecConfig(name="float32"), coarse])
    _, result = task_accuracy(whole, TASKS["piqa"], folder, None, sweep)
    assert result["metrics"]["acc"]["ci95"] > 0
    # Blocks bound the memory and nothing else.
    monkeypatch.setattr(scoring, "_ROWS_PER_BLOCK", 100)
    in_blocks = task_accuracy(whole, TASKS["piqa"], folder, None, sweep)[1]
    assert in_blocks == result


def test_budgets_are_kept_on_the_items(whole, folder):
    sweep = Sweep([3], [CodecConfig(name="slicer")], budgets=[6, 4])
    fine, coarse = task_accuracy(whole, TASKS["piqa"], folder, 10, sweep)
    assert (fine["num_items"], coarse["num_items"]) == (10, 10)
    assert 5 < fine["bits_per_element"] <= 6
    assert 3 < coarse["bits_per_element"] <= 4


def test_generated_tokens_are_counted_apart(whole, folder):
    sweep = Sweep([3], [CodecConfig(name="float32")])
    (result,) = task_accuracy(whole, TASKS["gsm8k"], folder, 2, sweep)
    assert result["num_items"] == 2
    assert set(result["metrics"]) == {"exact_match", "flexible_match"}
    assert all(values["difference"] == 0 for values in result["metrics"].values())
    assert result["generated_tokens"] > 2
    assert result["generated_bits_per_element"] > result["bits_per_element"] > 32
