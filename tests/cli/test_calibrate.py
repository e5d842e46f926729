"""`sliceserve calibrate` on a tiny random model."""

import json

import pytest
from typer.testing import CliRunner

from sliceserve.calibration import default_store
from sliceserve.calibration.library import VERSION
from sliceserve.cli import app
from sliceserve.codec.profile import Profile
from sliceserve.codec.profile_store import ProfileKey


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """2100 words."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(f"w{i * i % 293}" for i in range(2100)))
    return str(path)


def run(*args):
    return CliRunner().invoke(app, ["calibrate", *args])


def stored(profile):
    key = ProfileKey(profile.model, profile.cut, profile.predictor, VERSION)
    return default_store().find(key)


def test_several_profiles_are_one_json_line(tiny_model, text, tmp_path):
    result = run(
        *("--model", tiny_model, "--split", "1,3", "--split", "5", "--predictor", "token, none"),
        *("--text", text, "--output", str(tmp_path / "a" / "b"), "--json"),
    )
    assert result.exit_code == 0, (result.stderr, result.exception)
    (line,) = result.stdout.splitlines()
    results = json.loads(line)["results"]
    assert [(one["split"], one["predictor"]) for one in results] == [
        (cut, predictor) for cut in (1, 3, 5) for predictor in ("token", "none")
    ]
    for one in results:
        assert one["model"] == tiny_model
        data = (tmp_path / "a" / "b" / f"{one['profile']}.safetensors").read_bytes()
        assert len(data) == one["num_bytes"]
        profile = Profile.from_bytes(data)
        assert (profile.cut, profile.predictor) == (one["split"], one["predictor"])
        assert stored(profile) == profile.digest == one["profile"]
        assert default_store().get(one["profile"]) == data
    assert len(list((tmp_path / "a" / "b").iterdir())) == 6


def test_a_table_names_the_profiles(tiny_model, text):
    result = run("--model", tiny_model, "--split", "2", "--predictor", "none", "--text", text)
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert f"Profiles of {tiny_model}" in " ".join(result.stdout.split())
    (row,) = (line for line in result.stdout.splitlines() if "none" in line)
    digest = row.replace("│", " ").split()[2]
    assert len(digest) == 12
    assert any(path.name.startswith(digest) for path in default_store().folder.iterdir())


def test_profiles_can_do_without_matrices(tiny_model, text):
    args = ("--model", tiny_model, "--split", "4", "--predictor", "state", "--text", text, "--json")
    result = run(*args, "--no-transform")
    assert result.exit_code == 0, (result.stderr, result.exception)
    profile = Profile.from_bytes(default_store().get(json.loads(result.stdout)["profile"]))
    assert profile.basis.dim() == profile.token_weight.dim() == profile.state_weight.dim() == 1


@pytest.mark.parametrize("predictor", ["magic", "state,magic", ""])
def test_an_unknown_predictor_is_a_usage_error(tiny_model, predictor):
    result = run("--model", tiny_model, "--predictor", predictor)
    assert result.exit_code == 2
    assert "is none of state, token, none" in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_a_split_that_is_no_number_is_a_usage_error(tiny_model):
    result = run("--model", tiny_model, "--split", "1,x")
    assert result.exit_code == 2
    assert "expected numbers with commas between" in result.stderr


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--split", "6"), "cuts must lie between layers 1 and 5 of this model, got 6"),
        (("--split", "0,2"), "cuts must lie between layers 1 and 5"),
    ],
)
def test_a_cut_outside_the_model_is_a_sentence(tiny_model, text, args, sentence):
    result = run("--model", tiny_model, *args, "--text", text)
    assert result.exit_code == 1
    assert sentence in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_a_text_that_is_short_or_missing_is_a_sentence(tiny_model, tmp_path):
    path = tmp_path / "short.txt"
    for words, sentence in ((None, "short.txt"), ("w1 w2", "at least 2048")):
        if words is not None:
            path.write_text(words)
        result = run("--model", tiny_model, "--split", "1", "--text", str(path))
        assert result.exit_code == 1
        assert sentence in result.stderr.replace("\n", "")
        assert "Traceback" not in result.stderr
