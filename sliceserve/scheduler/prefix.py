"""Names for prefixes: a chained hash over whole blocks of inputs."""

import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import cast

DIGEST_BYTES = 16
_LENGTH = struct.Struct("<I")


def block_digests(inputs: "Sequence[int] | Sequence[bytes]", block_size: int) -> list[bytes]:
    """The digest of every whole block of ``inputs`` (token ids or packets, one a position).

    Each covers all inputs up to its block's end: BLAKE2b over the digest before it and the block,
    token ids as little-endian uint32, packets each with its length as such before it. Client and
    server come to the same ones; what else sets prefixes apart (tenant, entry layer, codec) is for
    the owner of the table that they are looked up in.
    """
    digests: list[bytes] = []
    extend_digests(digests, inputs, block_size)
    return digests


def extend_digests(
    digests: list[bytes], inputs: "Sequence[int] | Sequence[bytes]", block_size: int
) -> None:
    """Append the digests of the whole blocks of ``inputs`` that have none yet."""
    digest = digests[-1] if digests else b""
    for stop in range((len(digests) + 1) * block_size, len(inputs) + 1, block_size):
        block = inputs[stop - block_size : stop]
        digest = blake2b(digest + _as_bytes(block), digest_size=DIGEST_BYTES).digest()
        digests.append(digest)


def _as_bytes(block: "Sequence[int] | Sequence[bytes]") -> bytes:
    if isinstance(block[0], int):
        return struct.pack(f"<{len(block)}I", *block)
    packets = cast("Sequence[bytes]", block)
    pieces = [b""] * (2 * len(packets))
    pieces[::2] = map(_LENGTH.pack, map(len, packets))
    pieces[1::2] = packets
    return b"".join(pieces)
