"""What each aim of the encoder promises of every packet."""

from dataclasses import replace

import pytest
import torch
from profiles_by_hand import (
    HIDDEN_SIZE,
    PREDICTORS,
    decode,
    embedding,
    encode,
    make_codec,
    make_profile,
    make_run,
)

from sliceserve.codec.base import CodecError
from sliceserve.codec.prediction import Prediction
from sliceserve.codec.quantization import Quantization
from sliceserve.configs import CalibratedConfig
from sliceserve.kernels import calibrated as kernel

CPU = torch.device("cpu")


def point_of(packet):
    return packet[0] % kernel.NUM_POINTS


def is_apart(packet):
    return packet[0] == kernel.ESCAPE


def mean_bits(packets):
    return 8 * sum(map(len, packets)) / len(packets) / HIDDEN_SIZE


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_more_bits_are_larger_packets_and_smaller_errors(predictor):
    profile = make_profile(predictor)
    rows, token_ids = make_run(60, profile=profile)
    sizes, errors = [], []
    for bits in (0.5, 1.5, 3.0, 4.0, 5.0, 6.0):
        codec = make_codec(predictor, bits_per_element=bits)
        packets, _ = encode(codec, rows, token_ids)
        sizes.append(mean_bits(packets))
        errors.append((decode(codec, packets)[0] - rows).square().sum().item())
    assert sizes == sorted(set(sizes))
    assert errors == sorted(set(errors), reverse=True)


@pytest.mark.parametrize(
    ("bits", "point"), [(0.001, 31), (0.2, 31), (3.2, 16), (3.1, 16), (3.28, 16), (6.4, 0), (8, 0)]
)
def test_points_are_read_off_the_profiles_rates(bits, point):
    """Falling by 0.2 a point, from 6.4 at point 0. The mean is as sensitive as the average."""
    codec = make_codec("none", bits_per_element=bits)
    assert point_of(codec.encode(codec.profile.mean[None])[0]) == point


@pytest.mark.parametrize("sign", [-1, 1])
def test_sensitive_tokens_get_finer_steps_within_bounds(sign):
    codec = make_codec("none", bits_per_element=3.2)
    direction = codec.profile.sensitivity[:-1]
    for shift in (2, 4, 6, 7):
        row = codec.profile.mean + sign * shift * direction / direction.square().sum()
        assert point_of(codec.encode(row[None])[0]) == 16 + sign * min(shift, 6)


def test_norms_beyond_the_threshold_are_sent_apart():
    codec = make_codec("none")
    row = torch.ones(1, HIDDEN_SIZE) * codec.profile.escape_norm / HIDDEN_SIZE**0.5
    assert not is_apart(codec.encode(row * 0.999)[0])
    assert is_apart(codec.encode(row * 1.001)[0])


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("cap", [256, 300, 1000])
def test_a_cap_holds_for_every_packet(predictor, cap):
    profile = make_profile(predictor, hidden_size=64)
    codec = make_codec(profile=profile, bits_per_token=cap)
    rows, token_ids = make_run(40, apart=(0, 7), profile=profile)
    rows[9, 3] = 3e38
    rows[11] *= 10
    packets, _ = encode(codec, rows, token_ids)
    assert max(8 * len(packet) for packet in packets) <= cap
    assert decode(codec, packets)[0].isfinite().all()
    if cap == 300:
        usual = [len(packet) for i, packet in enumerate(packets) if i not in (0, 7, 9, 11)]
        # Steps are spent up to the cap: a point is worth about a quarter of a bit an element.
        assert 8 * sum(usual) / len(usual) > cap - 40


def test_under_a_cap_the_largest_components_of_a_massive_token_stay():
    profile = make_profile("none", hidden_size=64)
    rows, _ = make_run(1, profile=profile)
    rows[0, 30] = 1e4
    decoded, _ = decode(*capped(profile, 256, rows))
    wider, _ = decode(*capped(profile, 520, rows))
    assert 0.2 * rows.norm() > (rows - decoded).norm() > (rows - wider).norm()


def capped(profile, cap, rows):
    codec = make_codec(profile=profile, bits_per_token=cap)
    return codec, codec.encode(rows)


def test_a_cap_below_what_a_packet_needs_is_refused():
    """Eight lanes of 4096 components have states to send, whatever the vector is."""
    profile = make_profile("none", hidden_size=4096)
    with pytest.raises(CodecError, match=r"bits_per_token must be at least .* for this model"):
        capped(profile, 256, torch.zeros(1, 4096))


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_a_step_finer_would_break_the_cap(predictor):
    cap = 300
    profile = make_profile(predictor, hidden_size=64)
    rows, token_ids = make_run(30, profile=profile)
    packets, _ = encode(make_codec(profile=profile, bits_per_token=cap), rows, token_ids)
    finer, _ = recoded(profile, rows, token_ids, [point_of(packet) - 1 for packet in packets])
    if predictor == "state":
        # Another step moves the states that later tokens are predicted from.
        finer = finer[:1]
    assert all(8 * len(packet) > cap for packet in finer)


@pytest.mark.parametrize("gain", [1.0, 1.1])
@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("budget", [1.0, 0.1, 0.003])
def test_a_distortion_budget_holds_for_every_token(predictor, budget, gain):
    profile = replace(make_profile(predictor), gains=torch.full((kernel.NUM_POINTS,), gain))
    codec = make_codec(profile=profile, distortion=budget)
    rows, token_ids = make_run(40, apart=(0, 7), profile=profile)
    rows[11] *= 10
    packets, _ = encode(codec, rows, token_ids)
    decoded, _ = decode(codec, packets)
    errors = (rows - decoded).square().sum(1) / rows.square().sum(1)
    assert errors.max() <= budget * (1 + 1e-5)
    if budget == 0.1:
        # What was massive needs no more than its share, either.
        assert not any(map(is_apart, packets))
        assert errors.mean() > budget / 3


@pytest.mark.parametrize("predictor", ["token", "none"])
def test_a_step_coarser_would_break_the_budget(predictor):
    budget = 0.05
    profile = make_profile(predictor)
    rows, token_ids = make_run(30, profile=profile)
    packets, _ = encode(make_codec(profile=profile, distortion=budget), rows, token_ids)
    points = [point_of(packet) + 1 for packet in packets]
    assert max(points) < kernel.NUM_POINTS
    _, decoded = recoded(profile, rows, token_ids, points)
    errors = (rows - decoded).square().sum(1) / rows.square().sum(1)
    assert errors.min() > budget


def test_a_budget_beyond_the_finest_step_is_kept_apart():
    codec = make_codec("none", distortion=1e-4)
    rows, _ = make_run(5, profile=codec.profile)
    packets = codec.encode(rows / 8)
    assert all(map(is_apart, packets))


def recoded(profile, rows, token_ids, points):
    """The first token of a sequence, again and again, at other points: packets and states."""
    prediction = Prediction(profile, embedding(profile), CPU)
    quantization = Quantization(profile, 0 if profile.predictor == "none" else 2, CPU)
    ids = torch.tensor(token_ids)
    predicted = prediction.from_tokens(ids)
    components = quantization.components(rows - predicted)
    packets, units = quantization.write(components, torch.tensor(points), ids)
    return packets, predicted + quantization.residual(units, torch.tensor(points))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"bits_per_element": 0.0}, "bits_per_element .*above 0, at most 8.* got 0"),
        ({"bits_per_element": 8.5}, "bits_per_element .*above 0, at most 8"),
        ({"bits_per_token": 255}, "bits_per_token .*at least 256.* got 255"),
        ({"distortion": -0.1}, "distortion .*0 to 1"),
        ({"distortion": 1.5}, "distortion .*0 to 1.* got 1.5"),
        ({"distortion": 0.1, "bits_per_token": 800}, "bits_per_token and distortion .*one of them"),
    ],
)
def test_settings_out_of_bounds_are_sentences(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        CalibratedConfig(**config)
