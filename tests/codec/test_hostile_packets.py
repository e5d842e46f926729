"""Any bytes are values or a CodecError, and every implementation reads what is accepted alike."""

import pytest
import torch

from sliceserve.codec.base import CodecError
from sliceserve.codec.registry import build_codec
from sliceserve.configs import CodecConfig, SlicerConfig
from sliceserve.kernels.grid_rans import reference as grid_reference
from sliceserve.kernels.slicer import cpu, reference

hypothesis = pytest.importorskip("hypothesis")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies

HIDDEN_SIZE = 70
NAMES = ("slicer", "int8", "rans", "float32", "float16", "bfloat16")
CODECS = {name: build_codec(CodecConfig(name=name), HIDDEN_SIZE) for name in NAMES}


def rows(count):
    return torch.randn(count, HIDDEN_SIZE, generator=torch.Generator().manual_seed(3))


def raw(packet):
    """A valid SLICER packet in the raw layout."""
    data, starts = cpu.checked([packet], HIDDEN_SIZE)
    return data[: starts[1]].tobytes()


def accepts(codec, packet):
    """Whether it was accepted: by ``check`` as by ``decode``, and then its values are numbers."""
    out = torch.full((1, HIDDEN_SIZE), torch.nan)
    try:
        codec.decode([packet], out)
    except CodecError as error:
        assert error.index == 0
        with pytest.raises(CodecError):
            codec.check(packet)
        return False
    codec.check(packet)
    assert out.isfinite().all()
    if codec.wire_id == "slicer/2":
        assert torch.equal(out, reference.decode([packet], HIDDEN_SIZE))
    if codec.wire_id == "rans/1":
        assert out[0].tolist() == grid_reference.decode(packet, HIDDEN_SIZE).tolist()
    return True


@pytest.mark.parametrize("name", NAMES)
@given(packet=st.one_of(st.binary(max_size=400), st.binary(max_size=12)))
@settings(max_examples=80, deadline=None)
def test_random_bytes(name, packet):
    accepts(CODECS[name], packet)


@given(tail=st.binary(max_size=150), first=st.integers(0, 15), num_kept=st.integers(0, 80))
@settings(max_examples=200, deadline=None)
def test_random_bytes_behind_a_header(tail, first, num_kept):
    header = bytes([2 << 4 | first]) + num_kept.to_bytes(2, "little")
    accepts(CODECS["slicer"], header + tail)


@pytest.mark.parametrize("name", NAMES)
def test_truncated_and_extended(name):
    codec = CODECS[name]
    packet = codec.encode(rows(1))[0]
    assert accepts(codec, packet)
    for length in range(len(packet)):
        assert not accepts(codec, packet[:length])
    for tail in (b"\0", b"\xff", packet, bytes(100_000)):
        assert not accepts(codec, packet + tail)


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
@pytest.mark.parametrize("name", NAMES)
def test_every_bit_flipped(name, sparsity):
    config = CodecConfig(name=name, slicer=SlicerConfig(sparsity=sparsity))
    codec = build_codec(config, HIDDEN_SIZE)
    packet = codec.encode(rows(1))[0]
    for bit in range(8 * len(packet)):
        flipped = bytearray(packet)
        flipped[bit // 8] ^= 1 << bit % 8
        accepts(codec, bytes(flipped))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({0: (4, 5)}, "more than 16 magnitude blocks"),
        ({4: (4, 1)}, "format version"),
        ({8: (16, 71)}, "more elements than the hidden size"),
        ({24: (4, 13)}, "wider than 12"),
        ({28: (16, 0x7F80)}, "range"),
        ({44: (16, 0x7FC0)}, "range"),
        ({44: (16, 0xBF80)}, "range"),
        ({28: (16, 0x4000), 44: (16, 0x3F80)}, "range"),
        ({28: (16, 0x0001)}, "range"),
        ({24: (4, 12)}, "length"),
        ({60: (1, 0)}, "survivors"),
        ({60: (1, 1), 61: (1, 1), 62: (1, 1)}, "survivors"),
    ],
)
def test_says_what_is_wrong(fields, message):
    config = SlicerConfig(num_blocks=1, sparsity=0.5, max_bits=3)
    codec = build_codec(CodecConfig(name="slicer", slicer=config), HIDDEN_SIZE)
    row = torch.arange(HIDDEN_SIZE, 0, -1).float()[None]
    row[0, 1] = 0
    packet = raw(codec.encode(row)[0])
    number = int.from_bytes(packet, "little")
    for position, (width, field) in fields.items():
        number = number & ~(((1 << width) - 1) << position) | field << position
    with pytest.raises(CodecError, match=message):
        codec.check(number.to_bytes(len(packet), "little"))


def test_refuses_unequal_blocks_and_set_padding():
    config = SlicerConfig(num_blocks=2, sparsity=0.5, max_bits=2, distortion=0.0)
    codec = build_codec(CodecConfig(name="slicer", slicer=config), HIDDEN_SIZE)
    packet = bytearray(raw(codec.encode(rows(1))[0]))
    first_tag = 24 + 2 * 36 + HIDDEN_SIZE
    packet[(first_tag + 1) // 8] ^= 1 << (first_tag + 1) % 8
    with pytest.raises(CodecError, match="equal size"):
        codec.check(bytes(packet))
    packet[(first_tag + 1) // 8] ^= 1 << (first_tag + 1) % 8
    num_bits = first_tag + 35 * 2 + 35 * 2
    assert len(packet) * 8 > num_bits
    packet[-1] |= 0x80
    with pytest.raises(CodecError, match="last field"):
        codec.check(bytes(packet))
