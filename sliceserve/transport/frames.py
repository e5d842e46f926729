"""The bytes of a message: a type byte, then a MessagePack body or the fields of a data frame.

Layouts of a data frame, of one packet and of several; docs/protocol.md has the tables and a dump:

    type u8 | CRC-32 u32 | request id | position | the packet
    type u8 | CRC-32 u32 | request id | first position | count | count lengths | the packets

Numbers without a width are varints, so that a frame of one packet, which every generated token
costs, has a header of 7 to 9 bytes. The CRC covers every other byte of the frame. Lengths stand
together so that a frame is checked whole before one packet is cut out of it.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate, pairwise

import msgspec

from sliceserve.transport.messages import (
    Bye,
    Cancel,
    Control,
    Credit,
    Drain,
    Error,
    Hello,
    Open,
    Opened,
    PromptLogprobs,
    Times,
    Token,
    Uint32,
    Want,
    Welcome,
)

MAX_FRAME_BYTES = 1 << 20
MAX_FRAME_TOKENS = 512


class MessageType(IntEnum):
    """The first byte of every message."""

    HELLO = 1
    WELCOME = 2
    OPEN = 3
    OPENED = 4
    CREDIT = 5
    WANT = 6
    TOKEN = 7
    CANCEL = 8
    ERROR = 9
    DRAIN = 10
    BYE = 11
    PROMPTLOGPROBS = 12
    TIMES = 13
    # No single flipped bit makes a control message of a data frame.
    PACKET = 0x80
    PACKETS = 0xC0


@dataclass(frozen=True, slots=True)
class DataFrame:
    """Packets of consecutive positions of one request, ``first_position`` on."""

    request_id: int
    first_position: int
    packets: Sequence[bytes]


class ProtocolError(Exception):
    """A message that breaks the protocol. ``code`` and ``request_id`` are those of the Error to
    answer with: with a request it ends that request, without one the connection."""

    def __init__(self, code: str, message: str, request_id: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.request_id = request_id


# The type and the CRC, which come before the fields.
_FIELDS_AT = 5

_TYPE_OF: dict[type[Control], MessageType] = {
    Hello: MessageType.HELLO,
    Welcome: MessageType.WELCOME,
    Open: MessageType.OPEN,
    Opened: MessageType.OPENED,
    Credit: MessageType.CREDIT,
    Want: MessageType.WANT,
    Token: MessageType.TOKEN,
    Cancel: MessageType.CANCEL,
    Error: MessageType.ERROR,
    Drain: MessageType.DRAIN,
    Bye: MessageType.BYE,
    PromptLogprobs: MessageType.PROMPTLOGPROBS,
    Times: MessageType.TIMES,
}
_DECODERS = {int(kind): msgspec.msgpack.Decoder(body) for body, kind in _TYPE_OF.items()}
_ENCODER = msgspec.msgpack.Encoder()


class _Named(msgspec.Struct):
    """What is read of a control message that is well formed but not valid."""

    request_id: Uint32


_NAMED_DECODER = msgspec.msgpack.Decoder(_Named)
# A text that is not UTF-8 has an error of its own.
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def encode(message: Control | DataFrame) -> bytes:
    """The bytes of one message. ValueError for a data frame that the layout cannot hold."""
    if isinstance(message, DataFrame):
        return _encode_data(message)
    return bytes((_TYPE_OF[type(message)],)) + _ENCODER.encode(message)


def decode(
    data: bytes,
    max_frame_bytes: int = MAX_FRAME_BYTES,
    max_frame_tokens: int = MAX_FRAME_TOKENS,
) -> Control | DataFrame:
    """The message in ``data``. ProtocolError for anything that ``encode`` would not have written,
    in time and memory linear in ``min(len(data), max_frame_bytes)``."""
    if len(data) > max_frame_bytes:
        raise _broken(f"a message of {len(data)} bytes; at most {max_frame_bytes} are allowed")
    if not data:
        raise _broken("an empty message; expected a type byte")
    if data[0] in (MessageType.PACKET, MessageType.PACKETS):
        return _decode_data(data, max_frame_tokens)
    return _decode_control(data)


def frames_for(
    request_id: int,
    first_position: int,
    packets: Sequence[bytes],
    max_tokens: int = MAX_FRAME_TOKENS,
    max_bytes: int = MAX_FRAME_BYTES,
) -> Iterator[DataFrame]:
    """Cut a run of packets into the fewest frames of at most ``max_tokens`` packets and
    ``max_bytes`` encoded bytes. ValueError for a packet that fits no frame."""
    start = 0
    while start < len(packets):
        first = packets[start]
        header = _FIELDS_AT + len(_varint(request_id)) + len(_varint(first_position + start))
        if header + len(first) > max_bytes:
            raise ValueError(
                f"the packet of position {first_position + start} has {len(first)} bytes and fits "
                f"no frame of {max_bytes}; choose a codec with fewer bits"
            )
        stop = start + 1
        size = _sized(first)
        while stop < len(packets) and stop - start < max_tokens:
            size += _sized(packets[stop])
            if header + len(_varint(stop + 1 - start)) + size > max_bytes:
                break
            stop += 1
        yield DataFrame(request_id, first_position + start, packets[start:stop])
        start = stop


def _encode_data(frame: DataFrame) -> bytes:
    count = len(frame.packets)
    if count < 1:
        raise ValueError("a data frame holds at least one packet, got none")
    if not 0 <= frame.request_id < 1 << 32:
        raise ValueError(f"a request id is a number below 2^32, got {frame.request_id}")
    if frame.first_position < 0 or frame.first_position + count > 1 << 32:
        raise ValueError(f"positions lie below 2^32, got {frame.first_position} and {count} on")
    fields = [frame.request_id, frame.first_position]
    kind = MessageType.PACKET
    if count > 1:
        fields += [count, *map(len, frame.packets)]
        kind = MessageType.PACKETS
    first, body = bytes((kind,)), b"".join((*map(_varint, fields), *frame.packets))
    return first + _checksum(first, body) + body


def _decode_data(data: bytes, max_frame_tokens: int) -> DataFrame:
    view = memoryview(data)
    # A frame too short for its CRC fails here too.
    if data[1:_FIELDS_AT] != _checksum(view[:1], view[_FIELDS_AT:]):
        # Not one field can be trusted, the request id included.
        raise _broken("a data frame whose CRC-32 does not fit its bytes; send it again")
    request_id, at = _read_varint(data, _FIELDS_AT)
    first_position, at = _read_varint(data, at, request_id)
    if data[0] == MessageType.PACKET:
        return DataFrame(request_id, first_position, [data[at:]])
    count, at = _read_varint(data, at, request_id)
    if not 2 <= count <= max_frame_tokens:
        raise _broken(
            f"a data frame of {count} packets; expected 2 to {max_frame_tokens}, or one in a "
            "frame of its own type",
            request_id,
        )
    if first_position + count > 1 << 32:
        raise _broken("a data frame whose positions pass 2^32", request_id)
    lengths = []
    for _ in range(count):
        length, at = _read_varint(data, at, request_id)
        lengths.append(length)
    ends = list(accumulate(lengths, initial=at))
    if ends[-1] != len(data):
        raise _broken(
            f"a data frame of {len(data)} bytes whose lengths add up to {ends[-1]}", request_id
        )
    packets = [data[start:stop] for start, stop in pairwise(ends)]
    return DataFrame(request_id, first_position, packets)


def _checksum(kind: bytes | memoryview, body: bytes | memoryview) -> bytes:
    return zlib.crc32(body, zlib.crc32(kind)).to_bytes(4, "little")


def _sized(packet: bytes) -> int:
    """Bytes of a packet and its length."""
    return len(_varint(len(packet))) + len(packet)


def _varint(number: int) -> bytes:
    """LEB128: seven bits a byte, the lowest first; bit 7 says that another byte follows."""
    if number < 0x80:
        return bytes((number,))
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _read_varint(data: bytes, at: int, request_id: int | None = None) -> tuple[int, int]:
    """The number below 2^32 at ``at``, and where it ends. ProtocolError unless `_varint` would
    have written it so."""
    number = shift = 0
    # 32 bits take five bytes.
    for end, byte in enumerate(data[at : at + 5], start=at + 1):
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            if number >= 1 << 32 or (byte == 0 and shift > 7):
                break
            return number, end
    raise _broken(
        f"a data frame whose byte {at} begins no number: it is cut off, not below 2^32 or not in "
        "its shortest form",
        request_id,
    )


def _decode_control(data: bytes) -> Control:
    decoder = _DECODERS.get(data[0])
    if decoder is None:
        raise _broken(f"an unknown message type {data[0]:#04x}; is the other side newer?")
    name = MessageType(data[0]).name.capitalize()
    body = memoryview(data)[1:]
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        try:
            request_id = _NAMED_DECODER.decode(body).request_id
        except _MALFORMED:
            raise _broken(f"an invalid {name} message: {error}") from error
        raise ProtocolError(
            "invalid_request", f"received an invalid {name} message: {error}", request_id
        ) from error
    except _MALFORMED as error:
        raise _broken(f"a malformed {name} message: {error}") from error


def _broken(message: str, request_id: int | None = None) -> ProtocolError:
    return ProtocolError("protocol_error", f"received {message}", request_id)
