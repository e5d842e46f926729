"""Which profiles an engine offers and takes, and what becomes of those that it cannot have."""

import random
import sys
from dataclasses import replace

import pytest
from driving import SplitRun, finish

from sliceserve import calibration
from sliceserve.calibration import CalibrationError, calibrate, default_store, keep
from sliceserve.configs import (
    CacheConfig,
    CalibratedConfig,
    CodecConfig,
    EngineConfig,
    LayerConfig,
    ModelConfig,
    SamplingParams,
)
from sliceserve.engine.build import build_engine
from sliceserve.engine.messages import AppendPackets, Open, packet_codec
from sliceserve.engine.process import EngineProcess
from sliceserve.engine.profiles import encoder_for_profile, offered_profiles, profile_store
from sliceserve.models.errors import ModelError

CUT = 3
CALIBRATED = CodecConfig(name="calibrated")
GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def worded_model(tiny_model, tmp_path_factory):
    """The tiny model with a tokenizer, whose token i is the word "wi"."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("worded-llama")
    tiny_model[1].save_pretrained(path)
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(300)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def profiles(worded_model):
    noise = random.Random(3)
    text = " ".join(f"w{noise.randrange(3, 300)}" for _ in range(2048))
    made = calibrate(worded_model, [CUT], ("state", "none"), text)
    return {predictor: profile for (_, predictor), profile in made.items()}


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("SLICESERVE_CACHE", str(tmp_path))
    return profile_store()


def config(path, **changes):
    settings = {
        "model": ModelConfig(model=str(path), dtype="float32", device="cpu"),
        "layers": LayerConfig(cuts=(CUT,)),
        "cache": CacheConfig(num_tokens=1024, block_size=8),
    }
    return EngineConfig(**settings | changes)


def head_config(path):
    return config(path, layers=LayerConfig(stop=CUT))


def test_the_store_is_that_of_the_calibration(store):
    assert store.folder == default_store().folder


def test_an_engine_offers_the_profiles_of_its_cuts(worded_model, profiles, store):
    for profile in profiles.values():
        keep(profile, store)
    info = build_engine(config(worded_model)).info
    assert info.codecs[0] == "calibrated/1"
    assert {p.predictor: p.digest for p in info.profiles} == {
        predictor: profile.digest for predictor, profile in profiles.items()
    }
    for profile in info.profiles:
        assert (profile.codec, profile.cut) == ("calibrated/1", CUT)
        assert profile.num_bytes == len(store.get(profile.digest))
    assert info.profile("calibrated/1", CUT, hide_tokens=True).predictor == "none"
    assert info.profile("calibrated/1", CUT + 1, hide_tokens=True) is None
    off = build_engine(config(worded_model, profiles="off")).info
    assert "calibrated/1" not in off.codecs and off.profiles == []


@pytest.mark.parametrize("predictor", ["state", "none"])
def test_tokens_through_the_codec(worded_model, profiles, store, predictor):
    for profile in profiles.values():
        keep(profile, store)
    digest = profiles[predictor].digest
    codec = CodecConfig(
        name="calibrated", calibrated=CalibratedConfig(hide_tokens=predictor == "none")
    )

    def run(**limits):
        head = build_engine(head_config(worded_model), codec, digest)
        tail = build_engine(config(worded_model, **limits))
        run = SplitRun(tail, {CUT: head}, packet_codec("calibrated/1", digest))
        noise = random.Random(4)
        for i in range(3):
            run.open(str(i), [noise.randrange(3, 300) for _ in range(20)], CUT, GREEDY)
        return run, run.run()

    roomy, tokens = run()
    assert all(len(answer) == 12 for answer in tokens.values())
    # Too little room for two of them: packets are decoded again after preemptions.
    tight, again = run(cache=CacheConfig(num_tokens=56, block_size=8))
    assert tight.tail.stats().num_preempted_total > 0
    assert (again, tight.packets) == (tokens, roomy.packets)


@pytest.mark.parametrize("predictor", ["state", "none"])
def test_a_second_turn_goes_on_from_what_both_sides_kept(worded_model, profiles, store, predictor):
    for profile in profiles.values():
        keep(profile, store)
    digest = profiles[predictor].digest
    codec = CodecConfig(
        name="calibrated", calibrated=CalibratedConfig(hide_tokens=predictor == "none")
    )
    head = build_engine(head_config(worded_model), codec, digest)
    run = SplitRun(
        build_engine(config(worded_model)), {CUT: head}, packet_codec("calibrated/1", digest)
    )
    noise = random.Random(5)
    turns = [noise.randrange(3, 300) for _ in range(29)]
    run.open("first", turns[:20], CUT, GREEDY)
    prompt = [*turns[:20], *run.run()["first"], *turns[20:]]
    run.open("second", prompt, CUT, GREEDY)
    # The last token of the first answer was never computed: 31 positions, of which 24 are whole.
    assert run.reused["second"] == (24, 24)
    tokens = run.run()["second"]
    assert run.packets["second"][:24] == run.packets["first"][:24]

    # A server that has kept nothing comes to the same from the packets alone.
    cold = build_engine(config(worded_model))
    opening = Open(
        request_id="cold",
        entry_layer=CUT,
        num_prompt=len(prompt),
        sampling=GREEDY,
        codec=run.codec,
    )
    cold.handle(opening)
    sampled = []
    for i, packet in enumerate(run.packets["second"]):
        assert cold.handle(AppendPackets("cold", i, [packet])) == []
        sampled += [t.token_id for output in finish(cold) for t in output.tokens]
    assert sampled == tokens


def test_a_profile_is_for_one_cut_and_nobody_else_s_is_taken(worded_model, profiles, store):
    for profile in profiles.values():
        keep(profile, store)
    store.put(b"another")
    engine = build_engine(config(worded_model))
    digest = profiles["state"].digest
    for codec in (
        "calibrated/1",
        packet_codec("calibrated/1", "0" * 64),
        packet_codec("calibrated/1", "../../etc/passwd"),
        packet_codec("float32/1", digest),
        packet_codec("calibrated/1", digest) + " ",
    ):
        (answer,) = engine.handle(Open(request_id="a", entry_layer=CUT, num_prompt=1, codec=codec))
        assert answer.error_code == "unsupported_codec"
    opening = Open(
        request_id="a", entry_layer=CUT, num_prompt=1, codec=packet_codec("calibrated/1", digest)
    )
    assert engine.handle(opening)[0].opened


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (CalibrationError("the model has no gradients"), "no gradients"),
        (ModelError("there is no tokenizer"), "no tokenizer"),
        (OSError(28, "No space left on device"), "SLICESERVE_CACHE"),
    ],
)
def test_without_profiles_the_other_codecs_are_offered(
    worded_model, monkeypatch, caplog, error, says
):
    def fail(*_):
        raise error

    monkeypatch.setattr(calibration, "profiles_of", fail)
    assert "calibrated/1" not in build_engine(config(worded_model)).info.codecs
    (record,) = caplog.records
    assert "the calibrated codec is not offered" in record.message and says in record.message


def test_what_takes_long_is_told(worded_model, monkeypatch):
    def slow(path, cuts, predictors, progress, store):
        progress(1, 4)
        progress(4, 4)
        return {}

    monkeypatch.setattr(calibration, "profiles_of", slow)
    told = []
    assert offered_profiles(worded_model, [1, CUT], told.append) == []
    assert told == [f"Calibrating the codec for cuts 1, {CUT}: {share} %" for share in (25, 100)]


async def test_a_process_tells_it_too(worded_model, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "Calibrating: 25 %"\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    told = []
    engine = EngineProcess(config(worded_model, profiles="off"), told.append)
    await engine.start()
    await engine.stop()
    assert told == ["Calibrating: 25 %"]


def test_a_head_says_what_is_wrong_with_a_profile(worded_model, tiny_model, profiles, store):
    def expect(says, digest, path=worded_model, cut=CUT, **settings):
        codec = CodecConfig(name="calibrated", calibrated=CalibratedConfig(**settings))
        with pytest.raises(ModelError, match=says):
            encoder_for_profile(path, cut, digest, codec)

    state = profiles["state"]
    expect("none was named", None)
    expect("is not in", state.digest)
    keep(state, store)
    assert encoder_for_profile(worded_model, CUT, state.digest, CALIBRATED).predicts
    expect("is for cut 3 .* but 4 layers", state.digest, cut=4)
    expect("hide_tokens is set", state.digest, hide_tokens=True)
    expect("cannot be used", store.put(b"no profile at all"))
    expect("is for cut 3 of model abc", store.put(replace(state, model="abc").to_bytes()))
    store.path(state.digest).write_bytes(state.to_bytes()[:-1])
    expect("is not in", state.digest)
