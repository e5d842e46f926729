"""Profiles of a tiny model: made from a text, and found again."""

import pytest
import torch
from conftest import NUM_LAYERS, VOCAB_SIZE

from sliceserve.calibration import CalibrationError, calibrate, keep, library, profiles_of
from sliceserve.calibration.activations import DRAWS, collect
from sliceserve.calibration.corpus import WINDOW, default_text, windows_of
from sliceserve.codec.base import Run
from sliceserve.codec.calibrated import CalibratedCodec
from sliceserve.codec.profile import Profile
from sliceserve.codec.profile_store import ProfileKey, ProfileStore
from sliceserve.configs import CalibratedConfig
from sliceserve.kernels.calibrated import NUM_POINTS
from sliceserve.models.embeddings import read_embeddings
from sliceserve.models.resolve import fingerprint
from sliceserve.models.tokenizer import Tokenizer

CUTS = (1, 3)
PREDICTORS = ("state", "token", "none")


@pytest.fixture(scope="module")
def steps():
    return []


@pytest.fixture(scope="module")
def profiles(tiny_model, text, steps):
    return calibrate(tiny_model, CUTS, PREDICTORS, text, progress=lambda *step: steps.append(step))


@pytest.fixture(scope="module")
def windows(tiny_model, text):
    return windows_of(text, Tokenizer.load(tiny_model), 10_000)


@pytest.fixture(scope="module")
def activations(tiny_model, windows):
    return collect(tiny_model, windows, CUTS, 1, lambda done: None)


def test_a_profile_for_each_cut_and_predictor(profiles, tiny_model):
    assert set(profiles) == {(cut, predictor) for cut in CUTS for predictor in PREDICTORS}
    for (cut, predictor), profile in profiles.items():
        assert (profile.cut, profile.predictor) == (cut, predictor)
        assert (profile.model, profile.vocab_size) == (fingerprint(tiny_model), VOCAB_SIZE)
        assert profile.hidden_size == 24
        assert Profile.from_bytes(profile.to_bytes()).digest == profile.digest
        assert profile.rates.shape == (NUM_POINTS,)
        assert (profile.rates.diff() <= 0).all()
        assert 1 <= profile.gains[0] < 1.01 < profile.gains[24]
        assert profile.rates[0] > 4 > profile.rates[16] > profile.rates[-1] > 0


def test_a_profile_without_transform_has_no_matrix(tiny_model, text):
    profile = calibrate(tiny_model, [3], ["state"], text, transform=False)[3, "state"]
    for diagonal in (profile.basis, profile.token_weight, profile.state_weight):
        assert diagonal.shape == (24,)
    assert Profile.from_bytes(profile.to_bytes()).digest == profile.digest


def test_progress_reaches_its_total(profiles, steps):
    total = 2560 // WINDOW + len(profiles)
    assert steps == [(done, total) for done in range(1, total + 1)]


def test_packets_have_the_size_that_was_asked_for(profiles, tiny_model, windows, activations):
    """On the text of the calibration itself."""
    for profile in profiles.values():
        for bits in (2.5, 4.0):
            packets, _ = coded(profile, tiny_model, windows, activations, bits)
            mean = 8 * sum(map(len, packets)) / len(packets) / profile.hidden_size
            assert mean == pytest.approx(bits, rel=0.15)


def test_a_predictor_makes_errors_smaller_at_equal_bits(profiles, tiny_model, windows, activations):
    """At the first cut, where a state is little more than its token's embedding."""
    errors = {}
    for predictor in PREDICTORS:
        # Token ids cost two bytes, which weigh more here than in a model of a real size.
        bits = 3.0 + (0 if predictor == "none" else 16 / 24)
        _, error = coded(profiles[1, predictor], tiny_model, windows, activations, bits)
        errors[predictor] = error
    assert errors["token"] < 0.5 * errors["none"]
    assert errors["state"] < 0.5 * errors["none"]


def coded(profile, path, windows, activations, bits):
    """The last window's packets, without its first token, and their mean squared error."""
    config = CalibratedConfig(bits_per_element=bits)
    codec = CalibratedCodec(config, profile, read_embeddings(path))
    rows = activations[profile.cut].hidden[-1, 1:]
    packets = codec.encode(rows, [Run(len(rows), windows[-1, 1:].tolist())])
    decoded = torch.empty_like(rows)
    codec.decode(packets, decoded, [Run(len(rows))])
    return packets, (rows - decoded).square().mean().item()


def test_the_same_text_gives_the_same_profiles(profiles, tiny_model, text):
    again = calibrate(tiny_model, [3], ["none"], text)
    assert again[3, "none"].digest == profiles[3, "none"].digest


def test_hidden_states_are_what_enters_the_layer(tiny_model, windows, activations):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    with torch.no_grad():
        states = model(windows[:2], output_hidden_states=True).hidden_states
    for cut in CUTS:
        assert torch.allclose(activations[cut].hidden[:2], states[cut], atol=1e-4)
        gradients = activations[cut].gradients
        assert gradients.shape == (1, WINDOW, DRAWS, 24)
        assert gradients.abs().amax(dim=3).all()
        # Each draw is of other tokens.
        assert not torch.equal(gradients[:, :, 0], gradients[:, :, 1])


def test_gradients_are_those_of_what_the_model_draws(tiny_model, windows):
    """Over many draws the expected gradient of a log-likelihood is zero."""
    activations = collect(tiny_model, windows[:1].expand(100, -1), CUTS, 100, lambda done: None)
    for cut in CUTS:
        gradients = activations[cut].gradients.transpose(0, 1).flatten(1, 2)  # (T, 100 · DRAWS, d)
        mean, deviation = gradients.mean(1), gradients.std(1)
        errors = mean / (deviation / gradients.shape[1] ** 0.5)
        assert errors.square().mean().item() == pytest.approx(1, abs=0.2)


def test_a_short_text_is_refused(tiny_model):
    with pytest.raises(CalibrationError, match=r"has 1536 whole tokens; .* at least 2048"):
        calibrate(tiny_model, [1], text="w5 " * 2047)


@pytest.mark.parametrize("cuts", [[], [0], [1, NUM_LAYERS], [-1]])
def test_cuts_outside_the_model_are_refused(tiny_model, text, cuts):
    with pytest.raises(CalibrationError, match="between layers 1 and 3 of this model"):
        calibrate(tiny_model, cuts, text=text)


def test_the_shipped_text_takes_turns():
    """Any stretch of it holds articles, talk and code."""
    text = default_text()
    assert len(text) > 80_000
    for part in (text[: len(text) // 4], text[-len(text) // 4 :]):
        assert "def " in part or "return" in part
    assert text == default_text()


@pytest.fixture
def made(monkeypatch, profiles):
    """What the library calibrates: the profiles that there are already, and a note of it."""
    calls = []

    def stand_in(path, cuts, predictors, progress):
        calls.append((list(cuts), list(predictors)))
        return {(cut, name): profiles[cut, name] for cut in cuts for name in predictors}

    monkeypatch.setattr(library, "calibrate", stand_in)
    return calls


def test_profiles_are_kept_and_found(tiny_model, tmp_path, made):
    store = ProfileStore(tmp_path)
    first = profiles_of(tiny_model, CUTS, ["state", "none"], store=store)
    assert list(first) == [(1, "state"), (1, "none"), (3, "state"), (3, "none")]
    again = profiles_of(tiny_model, CUTS, ["state", "none"], store=store)
    assert made == [([1, 3], ["state", "none"])]
    assert {key: p.digest for key, p in again.items()} == {
        key: p.digest for key, p in first.items()
    }


def test_only_what_is_missing_is_made(tiny_model, tmp_path, made, profiles):
    store = ProfileStore(tmp_path)
    keep(profiles[1, "state"], store)
    keep(profiles[1, "none"], store)
    keep(profiles[3, "none"], store)
    found = profiles_of(tiny_model, CUTS, ["state", "none"], store=store)
    assert made == [([3], ["state"])]
    assert {key: p.digest for key, p in found.items()} == {
        key: profiles[key].digest for key in found
    }


def test_a_damaged_profile_is_made_again(tiny_model, tmp_path, made, profiles):
    store = ProfileStore(tmp_path)
    keep(profiles[1, "none"], store)
    path = store.path(profiles[1, "none"].digest)
    path.write_bytes(path.read_bytes()[:-1])
    found = profiles_of(tiny_model, [1], ["none"], store=store)
    assert made == [([1], ["none"])]
    assert found[1, "none"].digest == profiles[1, "none"].digest
    assert path.read_bytes() == profiles[1, "none"].to_bytes()


def test_a_whole_file_that_is_no_profile_is_made_again(tiny_model, tmp_path, made):
    store = ProfileStore(tmp_path)
    key = ProfileKey(fingerprint(tiny_model), 1, "none", library.VERSION)
    store.assign(key, store.put(b"of another release"))
    assert set(profiles_of(tiny_model, [1], ["none"], store=store)) == {(1, "none")}
    assert made == [([1], ["none"])]


def test_a_profile_that_was_kept_last_is_the_one_to_use(tiny_model, tmp_path, made, profiles):
    store = ProfileStore(tmp_path)
    other = calibrate(tiny_model, [1], ["none"], "w1 w2 w3 w4 w5 w6 w7 " * 300)[1, "none"]
    for profile in (profiles[1, "none"], other):
        keep(profile, store)
    assert profiles_of(tiny_model, [1], ["none"], store=store)[1, "none"].digest == other.digest
    assert other.digest != profiles[1, "none"].digest
    assert made == []
