"""The bytes of a message: a type byte, then a MessagePack body or the fields of a data frame.

Layout of a data frame, little-endian; docs/protocol.md has the table and a byte dump:

    type u8 | request id u32 | first position u32 | count u16 | flags u8 | CRC-32 u32
    count lengths u16 | the packets, end to end

The CRC covers every other byte of the frame. Lengths stand together so that a frame is checked
whole before one packet is cut out of it.
"""

import struct
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
    Token,
    Uint32,
    Want,
    Welcome,
)

MAX_FRAME_BYTES = 1 << 20
MAX_FRAME_TOKENS = 512
MAX_PACKET_BYTES = (1 << 16) - 1


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
    # No single flipped bit makes a control message of a data frame.
    DATA = 0x80


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


# Everything of the header but its CRC, which stands behind it.
_FIELDS = struct.Struct("<BIIHB")
_CRC = struct.Struct("<I")
HEADER_BYTES = _FIELDS.size + _CRC.size
LENGTH_BYTES = 2

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
}
_DECODERS = {int(kind): msgspec.msgpack.Decoder(body) for body, kind in _TYPE_OF.items()}
_ENCODER = msgspec.msgpack.Encoder()


class _Named(msgspec.Struct):
    """What is read of a control message that is well formed but not valid."""

    request_id: Uint32


_NAMED_DECODER = msgspec.msgpack.Decoder(_Named)


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
    if data[0] == MessageType.DATA:
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
    size = HEADER_BYTES
    for index, packet in enumerate(packets):
        cost = LENGTH_BYTES + len(packet)
        if HEADER_BYTES + cost > max_bytes:
            raise ValueError(
                f"the packet of position {first_position + index} has {len(packet)} bytes and fits "
                f"no frame of {max_bytes}; choose a codec with fewer bits"
            )
        if size + cost > max_bytes or index - start == max_tokens:
            yield DataFrame(request_id, first_position + start, packets[start:index])
            start, size = index, HEADER_BYTES
        size += cost
    if start < len(packets):
        yield DataFrame(request_id, first_position + start, packets[start:])


def _encode_data(frame: DataFrame) -> bytes:
    count = len(frame.packets)
    lengths = [len(packet) for packet in frame.packets]
    if not 1 <= count < 1 << 16:
        raise ValueError(f"a data frame holds 1 to 65535 packets, got {count}")
    if max(lengths) > MAX_PACKET_BYTES:
        raise ValueError(
            f"a packet holds at most {MAX_PACKET_BYTES} bytes, got {max(lengths)}; "
            "choose a codec with fewer bits"
        )
    if frame.request_id < 0 or frame.request_id >= 1 << 32:
        raise ValueError(f"a request id is a number below 2^32, got {frame.request_id}")
    if frame.first_position < 0 or frame.first_position + count > 1 << 32:
        raise ValueError(f"positions lie below 2^32, got {frame.first_position} and {count} on")
    fields = _FIELDS.pack(MessageType.DATA, frame.request_id, frame.first_position, count, 0)
    body = struct.pack(f"<{count}H", *lengths) + b"".join(frame.packets)
    return fields + _CRC.pack(_checksum(fields, body)) + body


def _decode_data(data: bytes, max_frame_tokens: int) -> DataFrame:
    if len(data) < HEADER_BYTES:
        raise _broken(f"a data frame of {len(data)} bytes; its header alone has {HEADER_BYTES}")
    view = memoryview(data)
    (crc,) = _CRC.unpack_from(data, _FIELDS.size)
    if crc != _checksum(view[: _FIELDS.size], view[HEADER_BYTES:]):
        # Not one field can be trusted, the request id included.
        raise _broken("a data frame whose CRC-32 does not fit its bytes; send it again")
    _, request_id, first_position, count, flags = _FIELDS.unpack_from(data)
    if flags:
        raise _broken(f"data frame flags {flags:#04x}; this version knows none", request_id)
    if not 1 <= count <= max_frame_tokens:
        raise _broken(
            f"a data frame of {count} packets; expected 1 to {max_frame_tokens}", request_id
        )
    if first_position + count > 1 << 32:
        raise _broken("a data frame whose positions pass 2^32", request_id)
    first_byte = HEADER_BYTES + LENGTH_BYTES * count
    if len(data) < first_byte:
        raise _broken(f"a data frame too short for the lengths of {count} packets", request_id)
    lengths = struct.unpack_from(f"<{count}H", data, HEADER_BYTES)
    ends = list(accumulate(lengths, initial=first_byte))
    if ends[-1] != len(data):
        raise _broken(
            f"a data frame of {len(data)} bytes whose lengths add up to {ends[-1]}", request_id
        )
    packets = [data[start:stop] for start, stop in pairwise(ends)]
    return DataFrame(request_id, first_position, packets)


def _checksum(fields: bytes | memoryview, body: bytes | memoryview) -> int:
    return zlib.crc32(body, zlib.crc32(fields))


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
        except (msgspec.DecodeError, RecursionError):
            raise _broken(f"an invalid {name} message: {error}") from error
        raise ProtocolError(
            "invalid_request", f"received an invalid {name} message: {error}", request_id
        ) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise _broken(f"a malformed {name} message: {error}") from error


def _broken(message: str, request_id: int | None = None) -> ProtocolError:
    return ProtocolError("protocol_error", f"received {message}", request_id)
