"""`sliceserve bench codec` with the calibrated codec: a model's profile, and a made-up one."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sliceserve.calibration import default_store, keep
from sliceserve.calibration.profiles import calibrate
from sliceserve.cli import app
from sliceserve.cli.bench.codec import measure_codec
from sliceserve.cli.bench.profiles import synthetic_profile
from sliceserve.cli.bench.vectors import heavy_tailed
from sliceserve.codec.registry import build_codec
from sliceserve.configs import CalibratedConfig, CodecConfig

TIMES = ("encode_us", "decode_us", "batch_encode_us", "batch_decode_us")
KERNEL_TIMES = ("kernel_encode_us", "kernel_decode_us")


@pytest.fixture(scope="module")
def profile(tiny_model):
    """Of the cut that is measured: the shipped text is nothing to the tiny model's tokenizer."""
    text = " ".join(f"w{i * i % 293}" for i in range(2100))
    made = calibrate(Path(tiny_model), [4], ["state"], text)[4, "state"]
    keep(made, default_store())
    return made


def test_the_calibrated_codec_is_measured_at_any_size(tiny_model, profile):
    args = ["--model", tiny_model, "--device", "cpu", "--split", "4", "--hidden-size", "72,2048"]
    args += ["--repeats", "2", "--codec", "calibrated", "--codec", "rans", "--json"]
    result = CliRunner().invoke(app, ["bench", "codec", *args])
    assert result.exit_code == 0, (result.stderr, result.exception)
    results = json.loads(result.stdout)["results"]
    assert [(one["codec"], one["hidden_size"]) for one in results] == [
        ("calibrated/1", 72),
        ("rans/1", 72),
        ("calibrated/1", 2048),
        ("rans/1", 2048),
    ]
    for one in results:
        assert all(one[name] > 0 for name in TIMES)
        is_calibrated = one["codec"] == "calibrated/1"
        assert all((name in one) == is_calibrated for name in KERNEL_TIMES)
        if is_calibrated:
            assert 0 < one["kernel_encode_us"] < one["batch_encode_us"]
            assert 0 < one["kernel_decode_us"] < one["batch_decode_us"]
    assert "core" in result.stderr


def test_states_of_the_model_are_measured_without_a_transform(tiny_model):
    args = ["--model", tiny_model, "--device", "cpu", "--split", "4", "--hidden-size", "72"]
    args += ["--repeats", "2", "--codec", "calibrated", "--no-transform", "--json"]
    result = CliRunner().invoke(app, ["bench", "codec", *args])
    assert result.exit_code == 0, (result.stderr, result.exception)
    measured = json.loads(result.stdout)
    assert measured["hidden_size"] == 72
    assert measured["vectors"].startswith("hidden states of")


@pytest.mark.parametrize("transform", [True, False])
@pytest.mark.parametrize("hide_tokens", [False, True])
def test_a_synthetic_profile_aims_at_the_bits_that_are_asked_for(hide_tokens, transform):
    vectors = heavy_tailed(128, 64, "cpu")
    settings = CalibratedConfig(bits_per_element=2.5, hide_tokens=hide_tokens)
    profile = synthetic_profile(vectors, settings, transform)
    embeddings = torch.zeros(1, 128)
    config = CodecConfig(name="calibrated", calibrated=settings)
    codec = build_codec(config, 128, profile, embeddings)
    assert codec.predicts != hide_tokens
    measured = measure_codec(codec, vectors, 1)
    assert measured["bits_per_element"] == pytest.approx(2.5, rel=0.25)
    assert measured["relative_mse"] < 0.2
