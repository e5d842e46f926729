"""Any bytes are values or a CodecError to the calibrated codec, and ``check`` knows which."""

from functools import cache

import pytest
import torch
from profiles_by_hand import HIDDEN_SIZE, PREDICTORS, encode, make_codec, make_profile, make_run

from sliceserve.codec.base import CodecError, Run
from sliceserve.kernels import calibrated as kernel

hypothesis = pytest.importorskip("hypothesis")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies

CODECS = {predictor: make_codec(predictor) for predictor in PREDICTORS}
CODECS["three bytes"] = make_codec(profile=make_profile("token", vocab_size=70_000))


def accepts(codec, packet):
    """Whether it was accepted: by ``check`` as by ``decode``, behind a good packet as alone."""
    good = packets_of(codec)[1]
    out = torch.full((4, HIDDEN_SIZE), torch.nan)
    try:
        codec.decode([good, packet], out[1:3], [Run(2)])
    except CodecError as error:
        assert error.index == 1
        with pytest.raises(CodecError) as caught:
            codec.check(packet)
        assert caught.value.index == 0
        return False
    codec.check(packet)
    assert out[1:3].isfinite().all()
    assert out[::3].isnan().all()
    return True


@cache
def packets_of(codec):
    """One apart, one usual."""
    rows, token_ids = make_run(2, apart=(0,), profile=codec.profile)
    return encode(codec, rows, token_ids)[0]


@pytest.fixture(params=CODECS)
def codec(request):
    return CODECS[request.param]


@pytest.mark.parametrize("name", CODECS)
@given(packet=st.one_of(st.binary(max_size=60), st.binary(max_size=12)))
@settings(max_examples=80, deadline=None)
def test_random_bytes(name, packet):
    accepts(CODECS[name], packet)


@pytest.mark.parametrize("name", CODECS)
@given(header=st.integers(0, 128), tail=st.binary(max_size=40), low=st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_random_bytes_behind_a_header_and_a_state(name, header, tail, low):
    """States from 2^16 on are those that an encoder ends in."""
    accepts(CODECS[name], bytes((header,)) + tail)
    accepts(CODECS[name], bytes((header,)) + tail[:2] + bytes((1 + low, 0)) + tail[2:])


def test_truncated_and_extended(codec):
    for packet in packets_of(codec):
        assert accepts(codec, packet)
        for length in range(len(packet)):
            assert not accepts(codec, packet[:length])
        for tail in (b"\0", b"\xff", b"\0\0", packet, bytes(100_000)):
            assert not accepts(codec, packet + tail)


def test_every_bit_flipped(codec):
    accepted = 0
    for packet in packets_of(codec):
        for bit in range(8 * len(packet)):
            flipped = bytearray(packet)
            flipped[bit // 8] ^= 1 << bit % 8
            accepted += accepts(codec, bytes(flipped))
    # Codes of the vector that was sent apart: any bits are as good as others.
    assert accepted > HIDDEN_SIZE


@pytest.mark.parametrize("name", CODECS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_spliced(name, data):
    codec = CODECS[name]
    one, other = packets_of(codec)
    head = data.draw(st.integers(0, len(other)))
    tail = data.draw(st.integers(0, len(one)))
    accepts(codec, other[:head] + one[tail:])


def test_the_largest_values_that_a_packet_can_say_are_finite():
    """Every level at its largest, at the widest step, again and again."""
    codec = CODECS["state"]
    tables = codec.profile.tables
    y64 = torch.full((1, HIDDEN_SIZE), kernel.MAX_INPUT, dtype=torch.int32)
    point = torch.tensor([kernel.NUM_POINTS - 1], dtype=torch.uint8)
    payload = torch.zeros(1, dtype=torch.int32)
    (packet,), _ = kernel.encode(y64, point, payload, tables, 0, 2)
    out = torch.empty(500, HIDDEN_SIZE)
    codec.decode([packet] * 500, out, [Run(500)])
    assert out.isfinite().all()
    assert out[-1].norm() < 100 * out[0].norm()
