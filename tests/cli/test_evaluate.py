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
    assert (point["split"], point["codec"][:7], point["tokens"]) == (2, "slicer/", 100)
    assert point["dtype"] == "float32"
    assert 3 < point["bits_per_element"] <= 4
    assert "slicer/" in result.stderr


def test_cuts_and_codecs_multiply(evaluate, text):
    result = evaluate(
        *("--data", text, "--split", "2, 3", "--split", 4, "--codec", "int8, slicer"),
        *("--sparsity", 0.25, "--tokens", 60, "--json"),
    )
    assert result.exit_code == 0, result.output
    results = json.loads(result.stdout)["results"]
    assert [(point["split"], point["codec"].split("/")[0]) for point in results] == [
        (cut, codec) for cut in (2, 3, 4) for codec in ("int8", "slicer")
    ]
    assert results[1]["settings"]["sparsity"] == 0.25


def test_without_json_there_is_a_table(evaluate, text):
    result = evaluate("--data", text, "--tokens", 60, "--codec", "slicer")
    assert result.exit_code == 0, result.output
    assert "slicer/" in result.stdout
    assert "uncut perplexity" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--split", "6"], "a split is 1 to 5"),
        (["--codec", "zip"], "codec.name must be"),
        (["--codec", "int8", "--bits-per-element", "4"], "int8 has one rate"),
        (["--codec", "slicer", "--bits-per-element", "0.01"], "slicer takes at least"),
        (["--data", "nowhere.jsonl"], "cannot read nowhere.jsonl"),
    ],
)
def test_a_foreseen_error_is_a_sentence(evaluate, text, args, words):
    result = evaluate("--data", text, *args)
    # A setting that cannot be is wrong usage.
    assert result.exit_code == (2 if "zip" in args else 1)
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


def test_a_picture_is_drawn(evaluate, text, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra [plot]")
    path = tmp_path / "picture.png"
    result = evaluate("--data", text, "--tokens", 60, "--plot", path)
    assert result.exit_code == 0, result.output
    assert path.read_bytes().startswith(b"\x89PNG")
    assert evaluate("--data", tmp_path, "--tasks", "piqa", "--plot", path).exit_code == 2


def test_tasks_are_answered_from_their_folder(evaluate, tmp_path):
    lines = [
        {"question": f"w{i}", "choices": ["w5 w6", f"w{2 * i}"], "answer": 0} for i in range(9, 15)
    ]
    path = tmp_path / "piqa_val.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    args = ("--data", tmp_path, "--tasks", "piqa", "--limit", 4, "--codec", "float32,int8")
    result = evaluate(*args, "--split", 3, "--json")
    assert result.exit_code == 0, result.output
    exact, int8 = json.loads(result.stdout)["results"]
    assert exact["num_items"] == 4
    assert exact["metrics"]["acc_norm"]["difference"] == 0
    assert (int8["task"], int8["split"]) == ("piqa", 3)
    assert "acc_norm" in evaluate(*args).stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--tasks", "mmlu"], "there is no task 'mmlu'"),
        (["--tasks", "humaneval"], "allow it with --allow-code-execution"),
        (["--tasks", "piqa"], "piqa needs the file piqa_val.jsonl"),
    ],
)
def test_a_task_that_cannot_be_run_is_a_sentence(evaluate, tmp_path, args, words):
    result = evaluate("--data", tmp_path, *args)
    assert result.exit_code == 1
    assert words in result.stderr
