"""The calibrated codec: what its packets hold, and that both sides stay in step."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from profiles_by_hand import (
    HIDDEN_SIZE,
    PREDICTORS,
    VOCAB_SIZE,
    decode,
    embedding,
    encode,
    make_codec,
    make_profile,
    make_run,
)

from sliceserve.codec import prediction, quantization
from sliceserve.codec.base import CodecError, Run
from sliceserve.codec.calibrated import CalibratedCodec
from sliceserve.codec.prediction import Prediction
from sliceserve.codec.quantization import Quantization
from sliceserve.codec.rate_control import RateControl
from sliceserve.codec.registry import build_codec, warm_up
from sliceserve.codec.waves import WaveCoder
from sliceserve.configs import CalibratedConfig, CodecConfig
from sliceserve.kernels import calibrated as kernel
from sliceserve.kernels.row_products import reference

CPU = torch.device("cpu")
GOLDEN = json.loads((Path(__file__).parent / "golden_calibrated.json").read_text())


@pytest.fixture(params=PREDICTORS)
def codec(request):
    return make_codec(request.param)


def golden_run():
    """Multiples of 1/64, six tokens; the first and the fourth are massive."""
    rows = (torch.arange(6 * HIDDEN_SIZE) * 37 % 331 - 165).float().view(6, -1) / 64
    rows[0, 5], rows[3, 17] = 1500.0, -700.0
    return rows, [7, 8, 8, 299, 0, 123]


def relative_error(rows, decoded):
    return ((rows - decoded).square().sum(1) / rows.square().sum(1)).max().item()


def is_apart(packet):
    return packet[0] == kernel.ESCAPE


def test_golden_bytes(codec):
    golden = GOLDEN[codec.profile.predictor]
    rows, token_ids = golden_run()
    packets, _ = encode(codec, rows, token_ids)
    assert [packet.hex() for packet in packets] == golden["packets"]
    assert [is_apart(packet) for packet in packets] == [True, False, False, True, False, False]
    decoded, _ = decode(codec, packets)
    # The products' last bits are those of a machine.
    assert decoded[2].tolist() == pytest.approx(golden["third"], abs=1e-5)


def test_fine_steps_leave_small_errors(codec):
    codec = make_codec(codec.profile.predictor, bits_per_element=6.4)
    rows, token_ids = make_run(50, profile=codec.profile)
    packets, _ = encode(codec, rows, token_ids)
    assert relative_error(rows, decode(codec, packets)[0]) < 0.005


CONFIGS = [{"bits_per_element": 2.0}, {"distortion": 0.05}, {"bits_per_token": 256}]


@pytest.mark.parametrize("config", CONFIGS)
def test_packets_and_states_do_not_depend_on_the_batch(codec, config):
    expect_independence(make_codec(codec.profile.predictor, **config), "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("config", CONFIGS)
def test_nor_do_they_on_a_gpu(codec, config):
    codec = make_codec(codec.profile.predictor, **config)
    expect_independence(codec, "cuda")
    rows, token_ids = make_run(30, apart=(0, 9), profile=codec.profile)
    packets, _ = encode(codec, rows.cuda(), token_ids)
    there, here = (decode(codec, packets, device)[0].cpu() for device in ("cuda", "cpu"))
    assert relative_error(there, here) < 1e-8


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_a_profile_without_transform(predictor):
    """Diagonals in place of matrices: the rest is the same."""
    profile = make_profile(predictor, transform=False)
    codec = make_codec(profile=profile, bits_per_element=6.4)
    expect_independence(codec, "cpu")
    rows, token_ids = make_run(50, profile=profile)
    packets, _ = encode(codec, rows, token_ids)
    assert relative_error(rows, decode(codec, packets)[0]) < 0.005


def test_gains_stretch_what_leaves_the_codec():
    """Not what the next token is predicted from, and no token apart."""
    profile = make_profile()
    stretching = make_codec(profile=replace(profile, gains=torch.full((kernel.NUM_POINTS,), 1.5)))
    rows, token_ids = make_run(9, apart=(0, 5))
    packets, carried = encode(stretching, rows, token_ids)
    assert packets == encode(make_codec(profile=profile), rows, token_ids)[0]
    plain, _ = decode(make_codec(profile=profile), packets)
    stretched, previous = decode(stretching, packets)
    assert torch.equal(previous, carried)
    is_usual = [i for i in range(9) if i not in (0, 5)]
    expected = profile.mean + (plain - profile.mean) * 1.5
    assert torch.allclose(stretched[is_usual], expected[is_usual], atol=1e-5)
    assert torch.equal(stretched[[0, 5]], plain[[0, 5]])


def expect_independence(codec, device):
    """Runs alone, together, and in chunks."""
    lengths, apart = (9, 1, 5, 12), ((0, 4), (), (4,), (3, 4))
    made = [make_run(n, i, apart[i], codec.profile) for i, n in enumerate(lengths)]
    made = [(rows.to(device), ids) for rows, ids in made]
    alone = [encode(codec, *run) for run in made]

    runs = [Run(0), *(Run(len(rows), ids) for rows, ids in made)]
    together = codec.encode(torch.cat([rows for rows, _ in made]), runs)
    assert together == [packet for packets, _ in alone for packet in packets]
    out = torch.empty(sum(lengths), HIDDEN_SIZE, device=device)
    codec.decode(together, out, [Run(n) for n in lengths])

    for (rows, ids), (packets, _), states in zip(made, alone, out.split(lengths), strict=True):
        assert torch.equal(states, decode(codec, packets, device)[0])
        encoder, decoder = Run(0), Run(0)
        for first in range(0, len(rows), 3):
            chunk = slice(first, min(first + 3, len(rows)))
            encoder.token_ids = ids[chunk]
            encoder.num_rows = decoder.num_rows = len(ids[chunk])
            assert codec.encode(rows[chunk], [encoder]) == packets[chunk]
            decoded = torch.empty_like(states[chunk])
            codec.decode(packets[chunk], decoded, [decoder])
            assert torch.equal(decoded, states[chunk])


def test_both_sides_carry_the_same_state_on():
    codec = make_codec("state")
    rows, token_ids = make_run(40, apart=(0, 17))
    encoder, decoder = Run(1), Run(1)
    for i in range(len(rows)):
        encoder.token_ids = token_ids[i : i + 1]
        packets = codec.encode(rows[i : i + 1], [encoder])
        out = torch.empty(1, HIDDEN_SIZE)
        codec.decode(packets, out, [decoder])
        if i in (0, 17):
            assert encoder.previous is decoder.previous is None
        else:
            assert torch.equal(encoder.previous, decoder.previous)
            assert torch.equal(encoder.previous, out[0])


@pytest.mark.parametrize("predictor", ["token", "none"])
def test_other_predictors_leave_the_runs_state_alone(predictor):
    codec = make_codec(predictor)
    packets, carried = encode(codec, *make_run(3, profile=codec.profile))
    assert carried is None
    assert decode(codec, packets)[1] is None
    out = torch.empty(3, HIDDEN_SIZE)
    codec.decode(packets, out)
    assert torch.equal(out, decode(codec, packets)[0])


def test_rounding_of_another_device_dies_out(monkeypatch):
    """Over 10,000 tokens none of which is sent apart, so that nothing sets the state right."""
    codec = make_codec("state")
    generator = torch.Generator().manual_seed(0)
    units = 100 * torch.randn(10_000, HIDDEN_SIZE, generator=generator)
    points = torch.randint(10, 20, (10_000,), generator=generator)
    token_ids = torch.randint(VOCAB_SIZE, (10_000,), generator=generator)
    packets, _ = kernel.encode(
        units.int(), points.byte(), token_ids.int(), codec.profile.tables, 0, 2
    )
    exact, _ = decode(codec, packets)
    for module in (prediction, quantization):
        monkeypatch.setattr(module, "row_products", reference.row_products)
    other = torch.empty_like(exact)
    wave_coder(codec).decode(packets, other, [Run(len(packets))])
    differences = (exact - other).abs().amax(dim=1)
    assert 0 < differences.max() < 1e-5 * exact.abs().max()
    assert differences[-1000:].max() < 3 * differences[10:1010].max()


def wave_coder(codec):
    """The one that other devices have."""
    profile = codec.profile
    embeddings = embedding(profile)
    sides = Prediction(profile, embeddings, CPU), Quantization(profile, 2, CPU)
    return WaveCoder(*sides, RateControl(CalibratedConfig(), profile, sides[1], CPU))


def test_a_disturbance_of_the_state_dies_out():
    codec = make_codec("state")
    rows, token_ids = make_run(100)
    packets, _ = encode(codec, rows, token_ids)
    exact, _ = decode(codec, packets[1:])
    run, other = Run(99, previous=codec.profile.mean + 1), torch.empty(99, HIDDEN_SIZE)
    codec.decode(packets[1:], other, [run])
    differences = (exact - other).norm(dim=1)
    assert differences[0] > 1
    assert differences[-1] < 1e-4


def test_tokens_apart_are_nearly_exact(codec):
    rows, token_ids = make_run(8, apart=(0, 5), profile=codec.profile)
    packets, _ = encode(codec, rows, token_ids)
    decoded, _ = decode(codec, packets)
    for i in (0, 5):
        assert is_apart(packets[i])
        assert (rows[i] - decoded[i]).abs().max() <= rows[i].abs().max() / 127


def test_the_token_behind_one_apart_is_predicted_as_the_first():
    codec = make_codec("state")
    rows, token_ids = make_run(8, apart=(5,))
    packets, _ = encode(codec, rows, token_ids)
    assert packets[6:] == encode(codec, rows[6:], token_ids[6:])[0]
    assert packets[4:5] != encode(codec, rows[4:5], token_ids[4:5])[0]


@pytest.mark.parametrize("value", [1e6, 1e20, 3e38])
def test_any_finite_token_is_sent(codec, value):
    rows, token_ids = make_run(3, profile=codec.profile)
    rows[1, 3], rows[1, 4] = value, -value
    packets, _ = encode(codec, rows, token_ids)
    assert is_apart(packets[1])
    decoded, _ = decode(codec, packets)
    assert torch.allclose(decoded[1, 3:5], rows[1, 3:5], rtol=0.01)


@pytest.mark.parametrize("predictor", ["state", "token"])
def test_packets_carry_token_ids(predictor):
    codec = make_codec(predictor)
    rows, token_ids = make_run(20, apart=(3,), profile=codec.profile)
    packets, _ = encode(codec, rows, token_ids)
    assert packets[3][1:4] == token_ids[3].to_bytes(3, "little")
    usual = [i for i in range(20) if i != 3]
    payloads = kernel.decode([packets[i] for i in usual], codec.profile.tables, 2)[2]
    assert payloads.tolist() == [token_ids[i] for i in usual]


def test_without_a_predictor_token_ids_are_nowhere():
    codec = make_codec("none")
    assert not codec.predicts
    rows, token_ids = make_run(20, apart=(3,), profile=codec.profile)
    packets, _ = encode(codec, rows, token_ids)
    assert packets == encode(codec, rows, [0] * 20)[0] == codec.encode(rows)
    assert kernel.decode(packets[:3], codec.profile.tables, 0)[2].tolist() == [0, 0, 0]


def test_large_vocabularies_take_three_bytes():
    profile = make_profile("state", vocab_size=70_000)
    codec = make_codec(profile=profile)
    rows, _ = make_run(4, apart=(2,), profile=profile)
    token_ids = [69_999, 65_536, 68_000, 5]
    packets, _ = encode(codec, rows, token_ids)
    assert [packet[1] for packet in packets] == [1, 1, 68_000 & 0xFF, 0]
    assert kernel.decode(packets[:2], profile.tables, 3)[2].tolist() == token_ids[:2]
    assert relative_error(rows[2:3], decode(codec, packets)[0][2:3]) < 1e-3


@pytest.mark.parametrize("apart", [(), (1,)])
@pytest.mark.parametrize(("vocab_size", "smaller"), [(300, 200), (70_000, 65_537)])
def test_ids_outside_the_vocabulary_are_refused(vocab_size, smaller, apart):
    profile = make_profile("token", vocab_size=vocab_size)
    rows, _ = make_run(3, apart=apart, profile=profile)
    packets, _ = encode(make_codec(profile=profile), rows, [0, smaller, vocab_size - 1])
    strict = make_codec(profile=make_profile("token", vocab_size=smaller))
    strict.check(packets[0])
    for packet in packets[1:]:
        with pytest.raises(CodecError, match="the vocabulary"):
            strict.check(packet)
    with pytest.raises(CodecError, match=f"token id {smaller} is not below {smaller}") as caught:
        decode(strict, packets)
    assert caught.value.index == 1


def test_names_the_first_bad_packet(codec):
    rows, token_ids = make_run(6, apart=(1, 4), profile=codec.profile)
    good, _ = encode(codec, rows, token_ids)
    for i in range(6):
        for later in range(i, 6):
            packets = list(good)
            packets[i] = good[i][:-1]
            packets[later] = good[later][:-1]
            with pytest.raises(CodecError) as caught:
                decode(codec, packets)
            assert caught.value.index == i


def test_refuses_headers_that_no_encoder_writes(codec):
    packets, _ = encode(codec, *make_run(1, apart=(0,), profile=codec.profile))
    codec.check(packets[0])
    for header in range(kernel.ESCAPE + 1, 256):
        with pytest.raises(CodecError):
            codec.check(bytes((header,)) + packets[0][1:])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_refuses_what_is_not_finite(codec, value):
    rows, token_ids = make_run(3, profile=codec.profile)
    rows[2, -1] = value
    with pytest.raises(CodecError, match="not finite") as caught:
        encode(codec, rows, token_ids)
    assert caught.value.index == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_floating_dtype_in_and_out(codec, dtype):
    rows, token_ids = make_run(3, profile=codec.profile)
    packets, _ = encode(codec, rows.to(dtype), token_ids)
    assert packets == encode(codec, rows.to(dtype).float(), token_ids)[0]
    buffer = torch.full((5, HIDDEN_SIZE), 7, dtype=dtype)
    codec.decode(packets, buffer[1:4], [Run(3)])
    assert torch.equal(buffer[1:4], decode(codec, packets)[0].to(dtype))
    assert (buffer[0] == 7).all() and (buffer[4] == 7).all()


def test_no_rows(codec):
    assert encode(codec, torch.empty(0, HIDDEN_SIZE), []) == ([], None)
    assert decode(codec, [])[0].shape == (0, HIDDEN_SIZE)


def test_runs_must_fit_the_rows():
    codec = make_codec("state")
    rows, token_ids = make_run(3)
    packets, _ = encode(codec, rows, token_ids)
    for runs in ((), [Run(2, token_ids[:2])], [Run(3, token_ids), Run(1, [0])]):
        with pytest.raises(ValueError, match=r"runs of .* rows do not fit 3 rows"):
            codec.encode(rows, runs)
        with pytest.raises(ValueError, match=r"runs of .* rows do not fit 3 rows"):
            codec.decode(packets, torch.empty(3, HIDDEN_SIZE), runs)
    with pytest.raises(ValueError, match="2 token ids do not fit 3 rows"):
        codec.encode(rows, [Run(3, token_ids[:2])])


def test_is_built_from_a_profile():
    config = CodecConfig(name="calibrated", calibrated=CalibratedConfig(bits_per_element=3))
    profile = make_profile("token")
    codec = build_codec(config, HIDDEN_SIZE, profile, embedding(profile))
    assert (codec.wire_id, codec.hidden_size, codec.predicts) == ("calibrated/1", HIDDEN_SIZE, True)
    run = make_run(2, profile=profile)
    assert encode(codec, *run) == encode(make_codec(profile=profile, bits_per_element=3), *run)
    warm_up(codec)
    with pytest.raises(CodecError, match=r"needs a profile .*sliceserve calibrate"):
        build_codec(config, HIDDEN_SIZE)
    with pytest.raises(ValueError, match="'token' needs embeddings"):
        CalibratedCodec(config.calibrated, profile)


def test_a_profile_of_another_model_decodes_to_something_else():
    """Both sides agree on a digest before they talk: a packet does not tell."""
    codec = make_codec("none")
    packets, _ = encode(codec, *make_run(1, profile=codec.profile))
    other = replace(codec.profile, mean=codec.profile.mean + 1, offset=codec.profile.offset + 1)
    shift = decode(make_codec(profile=other), packets)[0] - decode(codec, packets)[0]
    assert torch.allclose(shift, torch.ones(1, HIDDEN_SIZE), atol=1e-5)
