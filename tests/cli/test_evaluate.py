"""`sliceserve eval`: what it takes and what it prints."""

import json

import pytest
from typer.testing import CliRunner

from sliceserve.cli import app


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.jsonl"
    words = [f"w{3 + i * i % 290}" for i in range(120)]
    path.write_text(json.dumps({"text": " ".join(words)}))
    return path


@pytest.fixture
def evaluate(tiny_model):
    def run(*args):
        return CliRunner().invoke(app, ["eval", "--model", tiny_model, *map(str, args)])

    return run


def test_one_point_is_one_object(evaluate, text):
    result = evaluate(
        *("--data", text, "--split", 2, "--codec", "slicer", "--bits-per-element", 4),
        *("--tokens", 100, "--json"),
    )
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    point = json.loads(line)
    assert {
        *("model", "split", "codec", "settings", "dtype", "tokens", "bits_per_element"),
        *("packet_bits_per_element", "reduction_vs_fp16", "kl", "ppl", "ppl_uncompressed"),
        *("ppl_change", "top1", "tokens_per_frame"),
    } == {*point}
    assert (point["split"], point["codec"], point["tokens"]) == (2, "slicer/1", 100)
    assert point["dtype"] == "float32"
    assert 3 < point["bits_per_element"] <= 4
    assert "slicer/1" in result.stderr


def test_cuts_and_codecs_multiply(evaluate, text):
    result = evaluate(
        *("--data", text, "--split", "2, 3", "--split", 4, "--codec", "int8, slicer"),
        *("--sparsity", 0.25, "--tokens", 60, "--json"),
    )
    assert result.exit_code == 0, result.output
    results = json.loads(result.stdout)["results"]
    assert [(point["split"], point["codec"]) for point in results] == [
        (cut, codec) for cut in (2, 3, 4) for codec in ("int8/1", "slicer/1")
    ]
    assert results[1]["settings"]["sparsity"] == 0.25


def test_without_json_there_is_a_table(evaluate, text):
    result = evaluate("--data", text, "--tokens", 60)
    assert result.exit_code == 0, result.output
    assert "slicer/1" in result.stdout
    assert "uncut perplexity" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--split", "6"], "a split is 1 to 5"),
        (["--codec", "zip"], "codec.name must be"),
        (["--codec", "int8", "--bits-per-element", "4"], "int8 has one rate"),
        (["--bits-per-element", "0.01"], "slicer takes at least"),
        (["--data", "nowhere.jsonl"], "cannot read nowhere.jsonl"),
    ],
)
def test_a_foreseen_error_is_a_sentence(evaluate, text, args, words):
    result = evaluate("--data", text, *args)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert words in result.stderr
    assert "should not have happened" not in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["--bits-per-element", "1,x"],
        ["--bits-per-element", "-1"],
        ["--split", "a"],
        ["--tokens", "1"],
        ["--tokens-per-frame", "513"],
    ],
)
def test_wrong_usage_is_exit_code_2(evaluate, text, args):
    assert evaluate("--data", text, *args).exit_code == 2
