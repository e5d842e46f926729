"""A profile comes back whole from its bytes, and nothing else passes for one."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from profiles_by_hand import (
    HIDDEN_SIZE,
    PREDICTORS,
    VOCAB_SIZE,
    encode,
    make_codec,
    make_profile,
    make_run,
)
from safetensors.torch import load, save

from sliceserve.codec.profile import Profile, ProfileError

hypothesis = pytest.importorskip("hypothesis")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies

KEY = "sliceserve.profile"
TENSORS = ("mean", "offset", "basis", "sensitivity", "rates", "gains")
TOKEN_TENSORS = ("token_weight", "token_ids", "token_rows")
TABLES = ("frequencies", "centroids", "class_thresholds", "base_scales")
DATA = make_profile("state").to_bytes()


def parts(data=DATA):
    """What the file holds: settings and tensors."""
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    return json.loads(metadata[KEY]), load(data)


def rebuilt(change_settings=None, **change_tensors):
    """The profile's file with other settings and tensors; None takes one out."""
    settings, tensors = parts()
    for given, changes in ((settings, change_settings or {}), (tensors, change_tensors)):
        for name, value in changes.items():
            given[name] = value
            if value is None:
                del given[name]
    return save(tensors, {KEY: json.dumps(settings)})


def refused(data, match=None):
    with pytest.raises(ProfileError, match=match):
        Profile.from_bytes(data)


@pytest.mark.parametrize("transform", [True, False])
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_comes_back_whole(predictor, transform):
    profile = make_profile(predictor, transform=transform)
    again = Profile.from_bytes(profile.to_bytes())
    assert again.to_bytes() == profile.to_bytes()
    assert again.digest == profile.digest
    for name in ("model", "cut", "vocab_size", "predictor", "base_step", "escape_norm"):
        assert getattr(again, name) == getattr(profile, name)
    for name in (*TENSORS, *TOKEN_TENSORS, "state_weight"):
        before, after = getattr(profile, name), getattr(again, name)
        assert (before is None) == (after is None)
        if before is not None:
            assert torch.equal(before, after) and before.dtype == after.dtype
    for name in TABLES:
        assert (getattr(again.tables, name) == getattr(profile.tables, name)).all()


def test_every_predictor_has_its_own_terms():
    assert make_profile("state").state_weight is not None
    assert make_profile("token").state_weight is None
    assert make_profile("none").token_ids is None
    assert len({make_profile(predictor).digest for predictor in PREDICTORS}) == 3


def test_another_process_finds_the_same_digest():
    """Hashes of strings differ from process to process, and with them orders in a file might."""
    code = "from profiles_by_hand import make_profile; print(make_profile().digest)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert found.stdout.strip() == make_profile().digest


@pytest.mark.parametrize("name", ["basis", "token_weight", "token_rows", "state_weight"])
def test_the_order_of_a_tensor_in_memory_is_nothing_to_a_codec(name):
    profile = make_profile()
    transposed = replace(profile, **{name: getattr(profile, name).T.contiguous().T})
    assert transposed.digest == profile.digest
    run = make_run(3)
    assert encode(make_codec(profile=transposed), *run)[0] == encode(make_codec(), *run)[0]


def test_the_digest_tells_any_change():
    profile = make_profile()
    moved = profile.mean.clone()
    moved[-1] += 1e-5
    assert replace(profile, mean=moved).digest != profile.digest
    assert replace(profile, cut=4).digest != profile.digest


def test_truncated_and_extended():
    for length in [*range(200), *range(200, len(DATA), 997), len(DATA) - 1]:
        refused(DATA[:length])
    refused(DATA + b"\0")


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_random_bytes(data):
    refused(data)


@given(st.recursive(st.none() | st.integers() | st.floats() | st.text(max_size=5), st.lists))
@settings(max_examples=40, deadline=None)
def test_any_json_for_a_header(value):
    for header in (value, {"__metadata__": value}, {"__metadata__": {KEY: value}}):
        text = json.dumps(header).encode()
        refused(len(text).to_bytes(8, "little") + text)


@pytest.mark.parametrize("text", ["3", "null", '"a"', "[]", "{}", "{", "[" * 100_000])
def test_settings_that_are_none(text):
    refused(save(load(DATA), {KEY: text}))
    refused(save(load(DATA), {"another": text}))


@given(at=st.integers(0, 4000), value=st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_a_damaged_header_is_refused_or_says_something_else(at, value):
    damaged = bytearray(DATA)
    damaged[at] = value
    try:
        profile = Profile.from_bytes(bytes(damaged))
    except ProfileError:
        return
    assert Profile.from_bytes(profile.to_bytes()).digest == profile.digest


@pytest.mark.parametrize("name", [*TENSORS, *TOKEN_TENSORS, "state_weight", *TABLES])
def test_tensors_of_other_names_types_and_shapes(name):
    tensor = parts()[1][name]
    refused(rebuilt(**{name: None}))
    refused(rebuilt(**{name: tensor.double()}))
    refused(rebuilt(**{name: tensor[:-1]}))
    refused(rebuilt(**{name: tensor[None]}))
    refused(rebuilt(**{name: tensor.flatten()[0]}))
    refused(rebuilt(**{name: torch.empty(0, dtype=tensor.dtype)}))


def test_tensors_that_the_predictor_does_not_have():
    refused(rebuilt(another=torch.zeros(3)), match="does not hold the tensors")
    refused(rebuilt({"predictor": "token"}), match="does not hold the tensors of predictor 'token'")
    refused(rebuilt({"predictor": "none"}), match="does not hold the tensors of predictor 'none'")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", [*TENSORS, "token_weight", "token_rows", "state_weight"])
def test_tensors_that_are_not_finite(name, value):
    tensor = parts()[1][name].clone()
    tensor.view(-1)[-1] = value
    refused(rebuilt(**{name: tensor}), match=f"{name} is not finite")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": 1}, "format 1, this release reads 2; calibrate again"),
        ({"format": None}, "no codec profile"),
        ({"predictor": "magic"}, "unknown predictor 'magic'"),
        ({"cut": "3"}, "settings are not those"),
        ({"cut": True}, "settings are not those"),
        ({"model": None}, "settings are not those"),
        ({"another": 1}, "settings are not those"),
        ({"base_step": 0.0}, "must be positive"),
        ({"base_step": -1.0}, "must be positive"),
        ({"base_step": float("nan")}, "must be positive"),
        ({"base_step": float("inf")}, "must be positive"),
        ({"escape_norm": 0.0}, "must be positive"),
        ({"vocab_size": 0}, "vocabulary"),
        ({"vocab_size": -1}, "vocabulary"),
        ({"vocab_size": 10**12}, "vocabulary"),
    ],
)
def test_settings_of_another_kind(settings, message):
    refused(rebuilt(settings), match=message)


@pytest.mark.parametrize("ids", [[-1, 5], [5, 5], [6, 5], [5, VOCAB_SIZE], [5, 2**31 - 1]])
def test_rows_of_tokens_outside_the_vocabulary_or_out_of_order(ids):
    rows = torch.zeros(2, HIDDEN_SIZE, dtype=torch.half)
    token_ids = torch.tensor(ids, dtype=torch.int32)
    refused(rebuilt(token_ids=token_ids, token_rows=rows), match="token_ids")


def test_a_profile_with_no_row_of_a_token_of_its_own():
    data = rebuilt(
        token_ids=torch.empty(0, dtype=torch.int32),
        token_rows=torch.empty(0, HIDDEN_SIZE, dtype=torch.half),
    )
    assert Profile.from_bytes(data).token_rows.shape == (0, HIDDEN_SIZE)


@pytest.mark.parametrize("name", ["basis", "token_weight", "state_weight"])
def test_diagonals_and_matrices_do_not_mix(name):
    refused(rebuilt(**{name: parts()[1][name].diagonal().contiguous()}), match="has shape")


def test_tables_that_the_kernel_refuses():
    frequencies = parts()[1]["frequencies"].numpy().copy()
    frequencies[0, 0, 0, 0] += 1
    refused(rebuilt(frequencies=torch.from_numpy(frequencies)), match="tables cannot be used.*4096")


@pytest.mark.parametrize("transform", [True, False])
def test_a_basis_that_has_no_inverse(transform):
    """Decoders do without one, so that it is the first encoder that says so."""
    profile = make_profile(transform=transform)
    basis = profile.basis.clone()
    basis[3] = 0
    codec = make_codec(profile=Profile.from_bytes(replace(profile, basis=basis).to_bytes()))
    with pytest.raises(ProfileError, match="basis has no inverse"):
        encode(codec, *make_run(1))
