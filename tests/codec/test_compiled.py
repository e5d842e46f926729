"""The compiled coder against the one of tensors: the same bits, in packets, states and rows."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from profiles_by_hand import PREDICTORS, embedding, make_profile, make_run

from sliceserve.codec.apart import is_apart
from sliceserve.codec.base import CodecError, Run
from sliceserve.codec.calibrated import CalibratedCodec
from sliceserve.codec.compiled import CompiledCoder
from sliceserve.codec.prediction import Prediction
from sliceserve.codec.quantization import Quantization
from sliceserve.codec.rate_control import RateControl
from sliceserve.codec.waves import WaveCoder
from sliceserve.configs import CalibratedConfig
from sliceserve.kernels import calibrated as kernel

CPU = torch.device("cpu")
LENGTHS = (7, 0, 1, 12, 3)
APART = {0, 4, 7, 11, 12}


def make_coders(profile, dtype=torch.float32, **config):
    embeddings = None if profile.predictor == "none" else embedding(profile).to(dtype)
    payload_bytes = 0 if embeddings is None else 2 if profile.vocab_size <= 1 << 16 else 3
    prediction = Prediction(profile, embeddings, CPU)
    quantization = Quantization(profile, payload_bytes, CPU)
    rate_control = RateControl(CalibratedConfig(**config), profile, quantization, CPU)
    return [kind(prediction, quantization, rate_control) for kind in (CompiledCoder, WaveCoder)]


def make_rows(profile, apart=APART):
    """Rows of runs of ``LENGTHS``, ids, and what makes those runs, each behind a state."""
    rows, ids = make_run(sum(LENGTHS), 3, apart, profile)
    generator = torch.Generator().manual_seed(1)
    before = [torch.randn(profile.hidden_size, generator=generator) for _ in LENGTHS]
    before[2] = None

    def runs():
        ends = torch.tensor(LENGTHS).cumsum(0).tolist()
        spans = pairwise([0, *ends])
        return [
            Run(n, ids[a:b], previous, range(1, n, 2))
            for n, (a, b), previous in zip(LENGTHS, spans, before, strict=True)
        ]

    return rows, ids, runs


def carried(runs):
    """What runs have become, as something that compares by bits."""

    def bits(state):
        return None if state is None else state.view(torch.int32).tolist()

    return [
        (bits(run.previous), {row: bits(state) for row, state in run.states.items()})
        for run in runs
    ]


def expect_equal_bits(profile, dtype=torch.float32, out_dtype=torch.float32, **config):
    rows, ids, make_runs = make_rows(profile)
    written, read = [], []
    coders = make_coders(profile, dtype, **config)
    for coder in coders:
        runs = make_runs()
        written.append((coder.encode(rows, ids, runs), carried(runs)))
    assert written[0] == written[1]
    packets = [packet or bytes((kernel.ESCAPE,)) for packet in written[0][0]]
    places = [i for i, packet in enumerate(packets) if not is_apart(packet)]
    assert APART.isdisjoint(places)
    for coder in coders:
        runs, out = make_runs(), torch.zeros(rows.shape, dtype=out_dtype)
        coder.decode(packets, out, runs)
        read.append((out[places].float().view(torch.int32).tolist(), carried(runs)))
    assert read[0] == read[1]
    assert read[0][1] == written[0][1]


@pytest.mark.parametrize("transform", [True, False])
@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("bits", [0.8, 4.0])
def test_bits(predictor, transform, bits):
    profile = make_profile(predictor, transform=transform)
    gains = 1 + torch.arange(kernel.NUM_POINTS) / 64
    expect_equal_bits(replace(profile, gains=gains), bits_per_element=bits)


# One tile of columns and two, a lane and several, and what is left over of each.
@pytest.mark.parametrize("hidden_size", [1, 67, 1029, 2049])
def test_bits_at_other_sizes(hidden_size):
    profile = make_profile(hidden_size=hidden_size, transform=hidden_size < 2000)
    expect_equal_bits(replace(profile, escape_norm=3.0 * hidden_size))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bits_of_other_dtypes(dtype):
    expect_equal_bits(make_profile(), dtype=dtype, out_dtype=dtype)


def test_bits_with_large_vocabularies():
    expect_equal_bits(make_profile(vocab_size=70_000))


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_refuses_the_same_packets(predictor):
    """Each byte changed and each length: a value, or CodecError, from both."""
    profile = make_profile(predictor)
    rows, ids = make_run(1, profile=profile)
    coders = make_coders(profile, bits_per_element=2.0)
    (packet,) = coders[0].encode(rows, ids, [Run(1, ids)])
    damaged = [packet[:n] for n in range(len(packet))] + [packet + b"\0"]
    for i in range(len(packet)):
        for bit in range(8):
            damaged.append(packet[:i] + bytes((packet[i] ^ 1 << bit,)) + packet[i + 1 :])
    outcomes = [[outcome(coder, packet) for packet in damaged] for coder in coders]
    assert outcomes[0] == outcomes[1]
    assert "refused" in outcomes[0]


def outcome(coder, packet):
    if is_apart(packet):
        return "apart"
    out = torch.empty(1, 24)
    try:
        coder.decode([packet], out, [Run(1)])
    except CodecError:
        return "refused"
    return out.view(torch.int32).tolist()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_names_the_first_row_that_is_not_finite(value):
    profile = make_profile()
    rows, ids, make_runs = make_rows(profile)
    rows[0] = 3e38
    rows[9, 5] = rows[15, 0] = value
    for coder in make_coders(profile):
        with pytest.raises(CodecError, match="a value is not finite") as caught:
            coder.encode(rows, ids, make_runs())
        assert caught.value.index == 9


def test_a_state_that_overflows_is_refused():
    profile = replace(make_profile(), gains=torch.full((kernel.NUM_POINTS,), 3e38))
    rows, ids = make_run(2, profile=profile)
    coders = make_coders(profile)
    packets = coders[0].encode(rows, ids, [Run(2, ids)])
    for coder in coders:
        with pytest.raises(CodecError, match="not finite"):
            coder.decode(packets, torch.empty(rows.shape), [Run(2)])


def test_a_state_that_is_none_is_not_read():
    profile = make_profile()
    codec = CalibratedCodec(CalibratedConfig(), profile, embedding(profile))
    rows, ids = make_run(1)
    for previous in (rows[0, 1:], rows[0].double(), torch.zeros(48)[::2]):
        with pytest.raises(ValueError, match=r"the state before a run must be \(24,\)"):
            codec.encode(rows, [Run(1, ids, previous)])


@pytest.mark.parametrize("token_id", [-1, 300])
def test_token_ids_outside_the_vocabulary_are_not_looked_up(token_id):
    profile = make_profile()
    codec = CalibratedCodec(CalibratedConfig(), profile, embedding(profile))
    rows, _ = make_run(1)
    with pytest.raises(ValueError, match="token ids must be below 300"):
        codec.encode(rows, [Run(1, [token_id])])


def test_embeddings_must_be_those_of_the_profile():
    profile = make_profile()
    with pytest.raises(ValueError, match=r"shape \(299, 24\), expected \(300, 24\)"):
        CalibratedCodec(CalibratedConfig(), profile, embedding(profile)[1:])
