import tracemalloc
import zlib
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sliceserve.configs import SamplingParams
from sliceserve.transport.frames import (
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

# All sizes of a number on the wire, and not the largest alone.
ids = st.integers(0, 32).flatmap(lambda bits: st.integers(0, max(0, 2**bits - 1)))
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
        hide_tokens=st.booleans(),
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
        block_size=counts,
    ),
    st.builds(
        Open,
        request_id=ids,
        num_prompt=ids,
        sampling=sampling,
        outputs=st.lists(ids),
        prefix=st.lists(st.binary(min_size=16, max_size=16)),
    ),
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
packet_lists = st.lists(st.binary(max_size=40), min_size=1, max_size=9) | st.lists(
    st.sampled_from([bytes(127), bytes(128), bytes(20_000)]), min_size=1, max_size=3
)
frames = st.builds(
    DataFrame,
    request_id=ids,
    first_position=ids.map(lambda position: min(position, 2**32 - 10)),
    packets=packet_lists,
)
ONE = DataFrame(request_id=3, first_position=17, packets=[b"\x01\x02\x03"])
TWO = DataFrame(request_id=3, first_position=300, packets=[b"\x01\x02\x03", b"\xff"])


def seal(body: bytes, kind: int = 0xC0) -> bytes:
    """A data frame with a right CRC over whatever it is given."""
    return bytes((kind,)) + zlib.crc32(bytes((kind,)) + body).to_bytes(4, "little") + body


def size_of_number(number: int) -> int:
    return max(1, (number.bit_length() + 6) // 7)


@given(controls)
def test_control_messages_survive_a_round_trip(message: Control) -> None:
    assert decode(encode(message)) == message


@given(frames)
def test_data_frames_survive_a_round_trip(frame: DataFrame) -> None:
    data = encode(frame)
    assert decode(data) == frame
    numbers = [frame.request_id, frame.first_position]
    if len(frame.packets) > 1:
        numbers += [len(frame.packets), *map(len, frame.packets)]
    assert len(data) == 5 + sum(map(size_of_number, numbers)) + sum(map(len, frame.packets))


@pytest.mark.parametrize(
    ("request_id", "position", "header"), [(1, 0, 7), (127, 16383, 8), (16383, 16383, 9)]
)
def test_a_generated_token_costs_few_bytes_beside_its_packet(
    request_id: int, position: int, header: int
) -> None:
    assert len(encode(DataFrame(request_id, position, [bytes(110)]))) == header + 110


def test_every_message_has_a_type_byte_of_its_own() -> None:
    names = {kind.__name__.upper() for kind in Control.__subclasses__()}
    data = {MessageType.PACKET, MessageType.PACKETS}
    assert names == {kind.name for kind in set(MessageType) - data}
    for kind in set(MessageType) - data:
        assert all((kind ^ other).bit_count() > 1 for other in data)


def test_golden_bytes() -> None:
    assert encode(ONE) == seal(b"\x03\x11\x01\x02\x03", 0x80)
    assert encode(TWO) == seal(b"\x03\xac\x02\x02\x03\x01\x01\x02\x03\xff")
    assert encode(Credit(request_id=3, credit=300)) == (
        b"\x05\x82\xaarequest_id\x03\xa6credit\xcd\x01\x2c"
    )
    assert encode(Bye()) == b"\x0b\x80"


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (DataFrame(0, 0, []), "at least one packet"),
        (DataFrame(2**32, 0, [b"x"]), "request id"),
        (DataFrame(-1, 0, [b"x"]), "request id"),
        (DataFrame(0, 2**32 - 1, [b"x", b"y"]), "positions lie below"),
        (DataFrame(0, -1, [b"x"]), "positions lie below"),
    ],
)
def test_encode_refuses_what_the_layout_cannot_hold(frame: DataFrame, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        encode(frame)


@pytest.mark.parametrize("packets", [[b"x"], [b"x", b"y"]])
def test_the_last_position_is_usable(packets: list[bytes]) -> None:
    frame = DataFrame(2**32 - 1, 2**32 - len(packets), packets)
    assert decode(encode(frame)) == frame


@pytest.mark.parametrize("frame", [ONE, TWO])
def test_every_flipped_bit_is_noticed(frame: DataFrame) -> None:
    data = encode(frame)
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
    for length in range(min(len(data), 400)):
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


@pytest.mark.parametrize(
    "body",
    [
        # In a value, in a key, and after the id of a request.
        b"\x82\xa4code\xa1\xff\xa7message\xa1m",
        b"\x81\xa4\x97ode\xa1c",
        b"\x82\xaarequest_id\x05\xa4code\xa1\xff",
    ],
)
def test_texts_that_are_not_utf_8(body: bytes) -> None:
    with pytest.raises(ProtocolError) as broken:
        decode(b"\x09" + body)
    assert broken.value.code == "protocol_error"


@given(st.sampled_from([*range(16), 0x80, 0xC0, 0xFF]), st.binary(max_size=200))
def test_random_bytes_give_a_message_or_a_protocol_error(kind: int, body: bytes) -> None:
    data = bytes((kind,)) + body
    try:
        message = decode(data)
    except ProtocolError as error:
        assert error.code in ("protocol_error", "invalid_request")
    else:
        assert decode(encode(message)) == message


@given(
    kind=st.sampled_from([0x80, 0xC0]),
    # Small numbers, mostly: what a reader would believe.
    head=st.lists(st.integers(0, 4) | st.integers(0, 255), max_size=12).map(bytes),
    tail=st.binary(max_size=12),
)
def test_a_right_crc_does_not_excuse_wrong_fields(kind: int, head: bytes, tail: bytes) -> None:
    data = seal(head + tail, kind)
    try:
        frame = decode(data)
    except ProtocolError as error:
        assert error.code == "protocol_error"
    else:
        assert isinstance(frame, DataFrame)
        assert encode(frame) == data


LAST = b"\xff\xff\xff\xff\x0f"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (seal(b"\x03\x11\x00"), "0 packets; expected 2 to 8"),
        (seal(b"\x03\x11\x01\x01x"), "1 packets; expected 2 to 8, or one in a frame of its own"),
        (seal(b"\x03\x11\x09" + bytes(9)), "9 packets; expected 2 to 8"),
        (seal(b"\x03" + LAST + b"\x02\x00\x00"), "positions pass"),
        (seal(b"\x03\x11\x02\x01"), "byte 9 begins no number"),
        (seal(b"\x03\x11\x02\x01\x05abcd"), "14 bytes whose lengths add up to 16"),
        (seal(b"\x03\x11\x02\x01\x01abcd"), "14 bytes whose lengths add up to 12"),
        (seal(b"\x03", 0x80), "byte 6 begins no number"),
        (seal(b"\x03\x91\x00x", 0x80), "byte 6 begins no number"),
        (seal(b"\x03" + LAST[:4] + b"\x1fx", 0x80), "byte 6 begins no number"),
        (seal(b"\x03" + b"\x80" * 5 + b"\x01x", 0x80), "byte 6 begins no number"),
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
        (b"\x80", "CRC-32"),
        (b"\xc0" + bytes(20), "CRC-32"),
        (seal(b""), "byte 5 begins no number"),
        (seal(b"\x83\x00\x11\x02\x00\x00"), "byte 5 begins no number"),
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
    data = encode(TWO)
    assert decode(data, max_frame_bytes=len(data), max_frame_tokens=2) == TWO


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


# From the room for the largest packet on, which is that of a frame of its own.
@given(
    first=st.integers(0, 1000),
    packets=st.lists(st.binary(max_size=30) | st.just(bytes(140)), max_size=40),
    max_tokens=st.integers(1, 10) | st.just(200),
    max_bytes=st.integers(140 + 8, 700),
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
        larger = encode(DataFrame(9, frame.first_position, [*frame.packets, following.packets[0]]))
        assert len(frame.packets) == max_tokens or len(larger) > max_bytes


def test_frames_for_says_which_packet_fits_no_frame() -> None:
    with pytest.raises(ValueError, match="position 6 has 50 bytes"):
        list(frames_for(1, 5, [b"x", bytes(50)], max_bytes=56))
