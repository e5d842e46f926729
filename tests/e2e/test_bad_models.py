"""Models that cannot be served: `sliceserve serve` ends with a sentence."""

import json

import pytest
from correctness import altered_model

from sliceserve.configs import DEFAULT_MODEL
from sliceserve.models.resolve import resolve_model
from sliceserve.models.weights import find_tensors

pytestmark = [pytest.mark.e2e, pytest.mark.model]


@pytest.fixture
def tensors():
    """Names of the default model's tensors, with the file of each."""
    return {name: file.name for name, file in find_tensors(resolve_model(DEFAULT_MODEL)).items()}


def expect_refusal(start, model, words):
    program = start("serve", "--model", str(model), "--port", "0")
    out, err = program.communicate(timeout=200)
    assert (program.returncode, out) == (1, "")
    # One sentence, on one line, whatever was told of the work before.
    assert "Traceback" not in err
    assert err.count("Error: ") == 1
    last = err.splitlines()[-1]
    assert last.startswith("Error: ") and words in last


def test_an_unknown_model(start):
    expect_refusal(start, "no-such-model", "there is no model 'no-such-model'")


def test_a_missing_tensor(start, tensors, tmp_path):
    del tensors["model.layers.17.mlp.up_proj.weight"]
    index = {"model.safetensors.index.json": json.dumps({"weight_map": tensors})}
    model = altered_model(tmp_path / "model", files=index)
    expect_refusal(start, model, "have no tensor model.layers.17.mlp.up_proj.weight")


def test_weights_that_break_off(start, tensors, tmp_path):
    name = tensors["model.norm.weight"]
    with (resolve_model(DEFAULT_MODEL) / name).open("rb") as file:
        model = altered_model(tmp_path / "model", files={name: file.read(1 << 16)})
    expect_refusal(start, model, "cannot read")


def test_weights_of_another_shape(start, tmp_path):
    model = altered_model(tmp_path / "model", config={"intermediate_size": 1000})
    expect_refusal(start, model, "config.json and the weights do not belong together")
