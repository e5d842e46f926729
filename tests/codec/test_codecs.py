"""What holds for every codec, and what each promises of its own."""

import json
from pathlib import Path

import pytest
import torch

from sliceserve.codec.base import CodecError
from sliceserve.codec.registry import build_codec, codec_for_wire, known_codecs, warm_up
from sliceserve.configs import CodecConfig, RansConfig, SlicerConfig

NAMES = ("slicer", "int8", "rans", "float32", "float16", "bfloat16")
HIDDEN_SIZE = 100
GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())


@pytest.fixture(params=NAMES)
def codec(request):
    return build_codec(CodecConfig(name=request.param), HIDDEN_SIZE)


def golden_row():
    """Exact in every float: multiples of 1/64, both signs, ties, one massive activation."""
    row = (torch.arange(HIDDEN_SIZE) * 37 % 101 - 50).float() / 64
    row[17] = 1500.0
    return row[None]


def test_golden_bytes(codec):
    packet = bytes.fromhex(GOLDEN[codec.wire_id]["packet"])
    assert codec.encode(golden_row()) == [packet]
    out = torch.empty(1, HIDDEN_SIZE)
    codec.decode([packet], out)
    assert out[0].tolist() == GOLDEN[codec.wire_id]["values"]


def test_golden_bytes_of_a_matrix_of_many_codes():
    """Of eight levels, the massive activation of the golden row leaves a single element."""
    codec = build_codec(CodecConfig(name="rans", rans=RansConfig(num_levels=32)), HIDDEN_SIZE)
    row = golden_row()
    row[0, 17] = row[0, ::3] = 0
    golden = GOLDEN["rans/1, 32 levels"]
    packet = bytes.fromhex(golden["packet"])
    assert codec.encode(row) == [packet]
    out = torch.empty(1, HIDDEN_SIZE)
    codec.decode([packet], out)
    assert out[0].tolist() == golden["values"]


def test_rows_alone_and_together_give_the_same_packets(codec):
    rows = torch.randn(6, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))
    together = codec.encode(rows)
    assert together == [codec.encode(row[None])[0] for row in rows]
    assert together[2:4] == codec.encode(rows[2:4])
    out = torch.empty_like(rows)
    codec.decode(together, out)
    for packet, row in zip(together, out, strict=True):
        alone = torch.empty(1, HIDDEN_SIZE)
        codec_for_wire(codec.wire_id, HIDDEN_SIZE).decode([packet], alone)
        assert torch.equal(alone[0], row)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_any_floating_dtype_in_and_out(codec, dtype):
    rows = torch.randn(3, HIDDEN_SIZE, generator=torch.Generator().manual_seed(2)).to(dtype)
    packets = codec.encode(rows)
    assert packets == codec.encode(rows.float())
    buffer = torch.full((5, HIDDEN_SIZE), 7, dtype=dtype)
    codec.decode(packets, buffer[1:4])
    values = torch.empty(3, HIDDEN_SIZE)
    codec.decode(packets, values)
    assert torch.equal(buffer[1:4], values.to(dtype))
    assert (buffer[0] == 7).all() and (buffer[4] == 7).all()


def test_no_rows(codec):
    empty = torch.empty(0, HIDDEN_SIZE)
    assert codec.encode(empty) == []
    codec.decode([], empty)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_refuses_what_is_not_finite(codec, value):
    rows = torch.zeros(3, HIDDEN_SIZE)
    rows[2, 99] = value
    with pytest.raises(CodecError) as caught:
        codec.encode(rows)
    assert caught.value.index == 2


def test_names_the_first_bad_packet(codec):
    good = codec.encode(golden_row())[0]
    with pytest.raises(CodecError) as caught:
        codec.decode([good, good[:-1], b""], torch.empty(3, HIDDEN_SIZE))
    assert caught.value.index == 1


@pytest.mark.parametrize("shape", [(HIDDEN_SIZE,), (1, HIDDEN_SIZE - 1), (1, 1, HIDDEN_SIZE)])
def test_refuses_other_shapes(codec, shape):
    with pytest.raises(ValueError, match="hidden states must be"):
        codec.encode(torch.zeros(shape))


def test_a_row_for_each_packet(codec):
    with pytest.raises(ValueError, match="do not fit"):
        codec.decode(codec.encode(golden_row()), torch.empty(2, HIDDEN_SIZE))


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_passthrough_passes(name):
    codec = build_codec(CodecConfig(name=name), HIDDEN_SIZE)
    rows = torch.randn(4, HIDDEN_SIZE, dtype=getattr(torch, name))
    out = torch.empty_like(rows)
    codec.decode(codec.encode(rows), out)
    assert torch.equal(out, rows)


def test_float16_refuses_what_it_cannot_hold():
    codec = build_codec(CodecConfig(name="float16"), HIDDEN_SIZE)
    rows = torch.zeros(2, HIDDEN_SIZE)
    rows[1, 3] = 70000.0
    with pytest.raises(CodecError, match="not finite in float16") as caught:
        codec.encode(rows)
    assert caught.value.index == 1


def test_int8_is_within_half_a_step_and_survives_the_extremes():
    codec = build_codec(CodecConfig(name="int8"), HIDDEN_SIZE)
    rows = torch.randn(4, HIDDEN_SIZE)
    rows[1] *= 1e-37
    rows[2] *= 1e-42
    rows[3] = torch.finfo(torch.float32).max
    packets = codec.encode(rows)
    assert {len(packet) for packet in packets} == {HIDDEN_SIZE + 4}
    out = torch.empty_like(rows)
    codec.decode(packets, out)
    assert out.isfinite().all()
    for group in (slice(0, 64), slice(64, 100)):
        step = rows[0, group].abs().max() / 127 * (1 + 2**-7)
        assert (rows[0, group] - out[0, group]).abs().max() <= step / 2
    assert not out[2].any()
    assert torch.allclose(out[3], rows[3], rtol=0.01)


def test_int8_refuses_scales_and_codes_that_no_encoder_writes():
    codec = build_codec(CodecConfig(name="int8"), HIDDEN_SIZE)
    good = codec.encode(golden_row())[0]
    for at, value in ((1, 0xFF), (1, 0x7F), (HIDDEN_SIZE + 3, 0x80)):
        bad = bytearray(good)
        bad[at] = value
        with pytest.raises(CodecError):
            codec.check(bytes(bad))


def test_the_decoder_needs_no_settings():
    encoder = build_codec(
        CodecConfig(name="slicer", slicer=SlicerConfig(sparsity=0.9, num_blocks=8, max_bits=3)),
        HIDDEN_SIZE,
    )
    out = torch.empty(1, HIDDEN_SIZE)
    codec_for_wire("slicer/2", HIDDEN_SIZE).decode(encoder.encode(golden_row()), out)
    assert (out != 0).sum() == 10


def test_unknown_wire_id_lists_the_known():
    assert {"slicer/2", "int8/1", "rans/1", "float32/1", "float16/1", "bfloat16/1"} == set(
        known_codecs()
    )
    with pytest.raises(CodecError, match=r"zip/1.*slicer/2"):
        codec_for_wire("zip/1", HIDDEN_SIZE)


@pytest.mark.parametrize("name", ["slicer", "rans"])
def test_refuses_a_hidden_size_beyond_its_format(name):
    with pytest.raises(ValueError, match="16384"):
        build_codec(CodecConfig(name=name), 16385)


def test_warm_up(codec):
    warm_up(codec)


@pytest.mark.parametrize("hidden_size", [1, 7, 63, 65])
def test_int8_of_odd_sizes(hidden_size):
    codec = build_codec(CodecConfig(name="int8"), hidden_size)
    row = torch.linspace(-1, 1, hidden_size)[None]
    (packet,) = codec.encode(row)
    codec.check(packet)
    out = torch.empty_like(row)
    codec.decode([packet], out)
    assert (out - row).abs().max() <= 1 / 127
