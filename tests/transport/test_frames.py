import struct
import tracemalloc
import zlib
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sliceserve.configs import SamplingParams
from sliceserve.transport.frames import (
    HEADER_BYTES,
    LENGTH_BYTES,
    DataFrame,
    MessageType,
    ProtocolError,
    decode,
    encode,
    frames_for,
)
from sliceserve.transport.messages import (
    Alternative,
    Bye,
    Cancel,
    Control,
    Credit,
    Drain,
    Error,
    Hello,
    Open,
    Opened,
    Token,
    Want,
    Welcome,
)

ids = st.integers(0, 2**32 - 1)
counts = st.integers(0, 2**40)
floats = st.floats(allow_nan=False, allow_infinity=False)
seconds = st.floats(0, 1e6)
texts = st.text(max_size=20)
sampling = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 10**6),
    temperature=st.floats(0, 100),
    seed=st.none() | st.integers(0, 2**63 - 1),
    stop_token_ids=st.lists(st.integers(0, 10**6), max_size=4).map(tuple),
    logprobs=st.none() | st.integers(0, 20),
)
controls = st.one_of(
    st.builds(
        Hello,
        fingerprint=texts,
        cut=st.none() | counts,
        codec=texts,
        resume_token=st.none() | texts,
    ),
    st.builds(
        Welcome,
        cut=counts,
        codec=texts,
        profile=st.none() | texts,
        model=texts,
        num_layers=counts,
        max_model_len=counts,
        max_requests=counts,
        max_frame_tokens=counts,
        max_frame_bytes=counts,
        resume_token=texts,
        resume_timeout_s=seconds,
    ),
    st.builds(Open, request_id=ids, num_prompt=ids, sampling=sampling, outputs=st.lists(ids)),
    st.builds(Opened, request_id=ids, next_position=ids, credit=ids),
    st.builds(Credit, request_id=ids, credit=ids),
    st.builds(Want, request_id=ids, next_position=ids),
    st.builds(
        Token,
        request_id=ids,
        position=ids,
        token_id=ids,
        logprob=st.none() | floats,
        top=st.lists(st.builds(Alternative, token_id=ids, logprob=floats), max_size=3),
        finish_reason=st.none() | texts,
        server_us=counts,
    ),
    st.builds(Cancel, request_id=ids),
    st.builds(
        Error,
        code=texts,
        message=texts,
        request_id=st.none() | ids,
        retry_after_s=st.none() | seconds,
    ),
    st.builds(Drain, seconds=seconds),
    st.builds(Bye),
)
frames = st.builds(
    DataFrame,
    request_id=ids,
    first_position=st.integers(0, 2**32 - 10),
    packets=st.lists(st.binary(max_size=40), min_size=1, max_size=9),
)
SMALL = DataFrame(request_id=3, first_position=17, packets=[b"\x01\x02\x03", b"\xff"])


def seal(
    body: bytes, *, request_id: int = 3, first: int = 17, count: int = 1, flags: int = 0
) -> bytes:
    """A data frame with a right CRC over whatever it is given."""
    fields = struct.pack("<BIIHB", 0x80, request_id, first, count, flags)
    return fields + struct.pack("<I", zlib.crc32(fields + body)) + body


@given(controls)
def test_control_messages_survive_a_round_trip(message: Control) -> None:
    assert decode(encode(message)) == message


@given(frames)
def test_data_frames_survive_a_round_trip(frame: DataFrame) -> None:
    data = encode(frame)
    assert decode(data) == frame
    packet_bytes = sum(len(packet) for packet in frame.packets)
    assert len(data) == HEADER_BYTES + LENGTH_BYTES * len(frame.packets) + packet_bytes


def test_every_message_has_a_type_byte_of_its_own() -> None:
    names = {kind.__name__.upper() for kind in Control.__subclasses__()}
    assert names | {"DATA"} == {kind.name for kind in MessageType}
    for kind in MessageType:
        if kind is not MessageType.DATA:
            assert (kind ^ MessageType.DATA).bit_count() > 1


def test_golden_bytes() -> None:
    assert encode(SMALL) == seal(b"\x03\x00\x01\x00\x01\x02\x03\xff", count=2)
    assert encode(Credit(request_id=3, credit=300)) == (
        b"\x05\x82\xaarequest_id\x03\xa6credit\xcd\x01\x2c"
    )
    assert encode(Bye()) == b"\x0b\x80"


def test_largest_packet_and_one_too_large() -> None:
    frame = DataFrame(0, 0, [bytes(65535)])
    assert decode(encode(frame)) == frame
    with pytest.raises(ValueError, match="at most 65535 bytes, got 65536"):
        encode(DataFrame(0, 0, [bytes(65536)]))


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (DataFrame(0, 0, []), "1 to 65535 packets"),
        (DataFrame(0, 0, [b""] * 65536), "1 to 65535 packets"),
        (DataFrame(2**32, 0, [b"x"]), "request id"),
        (DataFrame(-1, 0, [b"x"]), "request id"),
        (DataFrame(0, 2**32 - 1, [b"x", b"y"]), "positions lie below"),
        (DataFrame(0, -1, [b"x"]), "positions lie below"),
    ],
)
def test_encode_refuses_what_the_layout_cannot_hold(frame: DataFrame, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        encode(frame)


def test_the_last_position_is_usable() -> None:
    frame = DataFrame(2**32 - 1, 2**32 - 1, [b"x"])
    assert decode(encode(frame)) == frame


def test_every_flipped_bit_is_noticed() -> None:
    data = encode(SMALL)
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolError) as caught:
            decode(bytes(damaged))
        assert caught.value.request_id is None


@given(frames, st.data())
def test_two_flipped_bits_are_noticed(frame: DataFrame, data: st.DataObject) -> None:
    damaged = bytearray(encode(frame))
    bits = st.integers(0, len(damaged) * 8 - 1)
    for bit in data.draw(st.lists(bits, min_size=2, max_size=2, unique=True)):
        damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ProtocolError):
        decode(bytes(damaged))


@given(frames, st.binary(min_size=1, max_size=8))
def test_short_and_long_frames_are_noticed(frame: DataFrame, tail: bytes) -> None:
    data = encode(frame)
    with pytest.raises(ProtocolError):
        decode(data + tail)
    for length in range(len(data)):
        with pytest.raises(ProtocolError):
            decode(data[:length])


@given(controls, st.binary(min_size=1, max_size=8))
def test_short_and_long_control_messages_are_noticed(message: Control, tail: bytes) -> None:
    data = encode(message)
    with pytest.raises(ProtocolError):
        decode(data + tail)
    for length in range(len(data)):
        with pytest.raises(ProtocolError):
            decode(data[:length])


@given(st.sampled_from([*range(16), 0x80, 0xFF]), st.binary(max_size=200))
def test_random_bytes_give_a_message_or_a_protocol_error(kind: int, body: bytes) -> None:
    data = bytes((kind,)) + body
    try:
        message = decode(data)
    except ProtocolError as error:
        assert error.code in ("protocol_error", "invalid_request")
    else:
        assert decode(encode(message)) == message


@given(
    body=st.binary(max_size=60),
    request_id=ids,
    first=ids,
    count=st.integers(0, 20),
    flags=st.sampled_from([0, 0, 0, 1]),
)
def test_a_right_crc_does_not_excuse_wrong_lengths(
    body: bytes, request_id: int, first: int, count: int, flags: int
) -> None:
    data = seal(body, request_id=request_id, first=first, count=count, flags=flags)
    try:
        frame = decode(data)
    except ProtocolError as error:
        assert error.request_id == request_id
    else:
        assert isinstance(frame, DataFrame)
        assert encode(frame) == data


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (seal(b"\x01\x00x", flags=4), "flags 0x04"),
        (seal(b"", count=0), "0 packets; expected 1 to 8"),
        (seal(b"\x00\x00" * 9, count=9), "9 packets; expected 1 to 8"),
        (seal(b"\x00\x00" * 2, count=2, first=2**32 - 1), "positions pass"),
        (seal(b"\x01", count=1), "too short for the lengths of 1"),
        (seal(b"\x05\x00abcd"), "add up to 23"),
        (seal(b"\x03\x00abcd"), "add up to 21"),
    ],
)
def test_a_bad_frame_names_its_request(data: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says) as caught:
        decode(data, max_frame_tokens=8)
    assert caught.value.code == "protocol_error"
    assert caught.value.request_id == 3


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty message"),
        (b"\x7f", "unknown message type 0x7f"),
        (b"\x80" + bytes(14), "header alone has 16"),
        (b"\x80" + bytes(20), "CRC-32"),
        (bytes(65), "65 bytes; at most 64"),
        (b"\x03\xc1", "malformed Open message"),
        (b"\x03\x80", "invalid Open message"),
        (b"\x0b\x81\xa1x\x01", "invalid Bye message: Object contains unknown field `x`"),
    ],
)
def test_an_unreadable_message_names_no_request(data: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says) as caught:
        decode(data, max_frame_bytes=64)
    assert caught.value.code == "protocol_error"
    assert caught.value.request_id is None


def test_a_frame_of_exactly_the_limits_passes() -> None:
    data = encode(SMALL)
    assert decode(data, max_frame_bytes=len(data), max_frame_tokens=2) == SMALL


@pytest.mark.parametrize(
    "fields",
    [
        {"num_prompt": 1, "sampling": {"temperature": -1.0}},
        {"num_prompt": 1, "sampling": {"temperature": float("nan")}},
        {"num_prompt": -1, "sampling": {}},
        {"num_prompt": 2**32, "sampling": {}},
        {"num_prompt": 1, "sampling": {}, "outputs": [-5]},
        {"num_prompt": 1, "sampling": {}, "colour": "red"},
        {"num_prompt": 1},
    ],
)
def test_an_invalid_open_ends_only_its_request(fields: dict[str, object]) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(b"\x03" + msgspec.msgpack.encode({"request_id": 7, **fields}))
    assert (caught.value.code, caught.value.request_id) == ("invalid_request", 7)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0])
def test_waiting_times_are_numbers_one_can_wait(seconds: float) -> None:
    with pytest.raises(ProtocolError):
        decode(encode(Drain(seconds=seconds)))


@pytest.mark.parametrize(
    "body",
    [
        # Lists, maps and strings that claim to hold four thousand million things.
        b"\x81\xa7outputs\xdd\xff\xff\xff\xff\x01",
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa8sampling\x81\xaestop_token_ids\xdd\xff\xff\xff\xff\x01",
        b"\x81\xa8sampling\xdb\xff\xff\xff\xff",
        # Nesting far beyond the stack, where a field is not known and is skipped.
        b"\x81\xa8sampling\x81\xa1x" + b"\x91" * 100_000,
    ],
)
def test_a_hostile_body_costs_little(body: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(ProtocolError):
        decode(b"\x03" + body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


@given(
    first=st.integers(0, 1000),
    packets=st.lists(st.binary(max_size=30), max_size=40),
    max_tokens=st.integers(1, 10),
    max_bytes=st.integers(HEADER_BYTES + LENGTH_BYTES + 30, 200),
)
def test_frames_for_keeps_every_packet_within_the_limits(
    first: int, packets: list[bytes], max_tokens: int, max_bytes: int
) -> None:
    cut = list(frames_for(9, first, packets, max_tokens, max_bytes))
    assert [packet for frame in cut for packet in frame.packets] == packets
    position = first
    for frame in cut:
        assert (frame.request_id, frame.first_position) == (9, position)
        assert decode(encode(frame), max_bytes, max_tokens) == frame
        position += len(frame.packets)
    # Greedy: no frame had room for the first packet of the next.
    for frame, following in pairwise(cut):
        larger = encode(DataFrame(9, 0, [*frame.packets, following.packets[0]]))
        assert len(frame.packets) == max_tokens or len(larger) > max_bytes


def test_frames_for_says_which_packet_fits_no_frame() -> None:
    with pytest.raises(ValueError, match="position 6 has 50 bytes"):
        list(frames_for(1, 5, [b"x", bytes(50)], max_bytes=60))
