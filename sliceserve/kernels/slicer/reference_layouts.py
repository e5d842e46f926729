"""The two layouts of a SLICER packet in plain Python: what ``layout`` says, as code."""

from dataclasses import dataclass, field
from itertools import pairwise

from sliceserve.kernels.rans import reference as rans
from sliceserve.kernels.slicer.layout import (
    CODED,
    FORMAT_VERSION,
    MAX_SKEW,
    SIGNS_AT_ONCE,
    SKEWED,
    block_end,
    index_bits,
    survivor_bits,
)


@dataclass(frozen=True)
class Fields:
    """What a packet says: (b, lo, hi) of each block and, of each survivor in order of index, its
    index, block, sign and code. lo and hi are bfloat16 bits."""

    blocks: list[tuple[int, int, int]]
    kept: list[int] = field(default_factory=list)
    block: list[int] = field(default_factory=list)
    negative: list[int] = field(default_factory=list)
    code: list[int] = field(default_factory=list)

    @property
    def log2_blocks(self) -> int:
        return len(self.blocks).bit_length() - 1

    def shortest(self, hidden_size: int) -> bytes:
        return min(self.raw(hidden_size), self.coded(hidden_size), key=len)

    def raw(self, hidden_size: int) -> bytes:
        return _write_raw(self, hidden_size)

    def coded(self, hidden_size: int) -> bytes:
        return _write_coded(self, hidden_size)

    @classmethod
    def read(cls, packet: bytes, hidden_size: int) -> "Fields":
        """Of a valid packet. Raises ValueError for some that are not."""
        return (_read_coded if packet[0] & CODED else _read_raw)(packet, hidden_size)


def _write_raw(fields: Fields, hidden_size: int) -> bytes:
    num_kept = len(fields.kept)
    bits = [(fields.log2_blocks, 4), (FORMAT_VERSION, 4), (num_kept, 16)]
    for width, lo, hi in fields.blocks:
        bits += [(width, 4), (lo, 16), (hi, 16)]
    if survivor_bits(hidden_size, num_kept) < hidden_size:
        bits += [(index, index_bits(hidden_size)) for index in fields.kept]
    else:
        bits.append((sum(1 << index for index in fields.kept), hidden_size))
    for block, negative in zip(fields.block, fields.negative, strict=True):
        bits.append((block << 1 | negative, 1 + fields.log2_blocks))
    for block, code in zip(fields.block, fields.code, strict=True):
        bits.append((code, fields.blocks[block][0]))
    number = position = 0
    for value, width in bits:
        number |= value << position
        position += width
    return number.to_bytes((position + 7) // 8, "little")


def _read_raw(packet: bytes, hidden_size: int) -> Fields:
    number = int.from_bytes(packet, "little")

    def take(width: int) -> int:
        nonlocal number
        value = number & ((1 << width) - 1)
        number >>= width
        return value

    log2_blocks, _, num_kept = take(4), take(4), take(16)
    fields = Fields([(take(4), take(16), take(16)) for _ in range(1 << log2_blocks)])
    if survivor_bits(hidden_size, num_kept) < hidden_size:
        fields.kept.extend(take(index_bits(hidden_size)) for _ in range(num_kept))
    else:
        mask = take(hidden_size)
        fields.kept.extend(i for i in range(hidden_size) if mask >> i & 1)
    for _ in range(num_kept):
        fields.negative.append(take(1))
        fields.block.append(take(log2_blocks))
    fields.code.extend(take(fields.blocks[block][0]) for block in fields.block)
    return fields


def _write_number(writer: rans.Encoder, value: int) -> None:
    writer.field(4, value.bit_length())
    for place in reversed(range(value.bit_length() - 1)):
        writer.field(1, value >> place & 1)


def _read_number(reader: rans.Decoder) -> int:
    length = reader.field(4)
    value = int(length > 0)
    for _ in range(length - 1):
        value = value << 1 | reader.field(1)
    return value


def _write_coded(fields: Fields, hidden_size: int) -> bytes:
    num_kept, num_blocks = len(fields.kept), len(fields.blocks)
    header = bytes([FORMAT_VERSION << 4 | CODED | fields.log2_blocks])
    header += num_kept.to_bytes(2, "little")
    writer = rans.Encoder()
    skews = [_skew(fields, j) for j in range(num_blocks)]
    for j, (width, lo, hi) in enumerate(fields.blocks):
        writer.field(4, width)
        if width > 1:
            writer.field(4, skews[j])
        _write_number(writer, hi - lo)
        if j + 1 < num_blocks:
            _write_number(writer, lo + 1 - fields.blocks[j + 1][2])

    kept = set(fields.kept)
    left = num_kept
    for i in range(hidden_size):
        survives = i in kept
        writer.bit(_share(left, hidden_size - i), survives)
        left -= survives
    for r in range(0, num_kept, SIGNS_AT_ONCE):
        signs = fields.negative[r : r + SIGNS_AT_ONCE]
        writer.field(len(signs), sum(sign << i for i, sign in enumerate(signs)))
    sizes = _block_sizes(num_kept, num_blocks)
    for block, code in zip(fields.block, fields.code, strict=True):
        first, span = 0, num_blocks
        while span > 1:
            span //= 2
            upper = block >= first + span
            writer.bit(_upper_share(sizes, first, span), upper)
            first += span * upper
        sizes[block] -= 1
        width = fields.blocks[block][0]
        for place in range(min(skews[block], width)):
            writer.bit(_odds(skews[block], place), code >> (width - 1 - place) & 1)
        rest = max(width - skews[block], 0)
        writer.field(rest, code & ((1 << rest) - 1))
    return header + writer.stream(fields.blocks[0][2])


def _read_coded(packet: bytes, hidden_size: int) -> Fields:
    num_blocks = 1 << (packet[0] & 7)
    num_kept = int.from_bytes(packet[1:3], "little")
    reader = rans.Decoder(packet[3:])
    widths, skews, spans, gaps = [], [], [], []
    for j in range(num_blocks):
        widths.append(reader.field(4))
        skews.append(reader.field(4) if widths[j] > 1 else 0)
        spans.append(_read_number(reader))
        gaps.append(_read_number(reader) if j + 1 < num_blocks else 0)

    fields = Fields([])
    for i in range(hidden_size):
        if reader.bit(_share(num_kept - len(fields.kept), hidden_size - i)):
            fields.kept.append(i)
    for r in range(0, num_kept, SIGNS_AT_ONCE):
        num_signs = min(SIGNS_AT_ONCE, num_kept - r)
        signs = reader.field(num_signs)
        fields.negative.extend(signs >> i & 1 for i in range(num_signs))
    sizes = _block_sizes(num_kept, num_blocks)
    for _ in range(num_kept):
        first, span = 0, num_blocks
        while span > 1:
            span //= 2
            first += span * reader.bit(_upper_share(sizes, first, span))
        sizes[first] -= 1
        fields.block.append(first)
        num_skewed = min(skews[first], widths[first])
        code = 0
        for place in range(num_skewed):
            code = code << 1 | reader.bit(_odds(skews[first], place))
        rest = widths[first] - num_skewed
        fields.code.append(code << rest | reader.field(rest))

    hi = reader.close()
    for width, span, gap in zip(widths, spans, gaps, strict=True):
        fields.blocks.append((width, hi - span, hi))
        hi += 1 - span - gap
    return fields


def _block_sizes(num_kept: int, num_blocks: int) -> list[int]:
    ends = [block_end(j, num_kept, num_blocks) for j in range(-1, num_blocks)]
    return [end - begin for begin, end in pairwise(ends)]


def _share(ones: int, total: int) -> int:
    return max(1, 4096 * ones // total) if ones else 0


def _upper_share(sizes: list[int], first: int, half: int) -> int:
    """Of the survivors to come in 2 · ``half`` blocks, those in the upper half."""
    upper = sum(sizes[first + half : first + 2 * half])
    return _share(upper, sum(sizes[first : first + 2 * half]))


def _odds(skew: int, place: int) -> int:
    return SKEWED[min(max(skew - place, 0), len(SKEWED) - 1)]


def _skew(fields: Fields, block: int) -> int:
    """The skew under which the block's codes are cheapest, the least of several."""
    width = fields.blocks[block][0]
    codes = [code for code, of in zip(fields.code, fields.block, strict=True) if of == block]

    def price(skew: int) -> int:
        total = 0
        for place in range(width):
            ones = sum(code >> (width - 1 - place) & 1 for code in codes)
            odds = _odds(skew, place)
            total += ones * _price(odds) + (len(codes) - ones) * _price(4096 - odds)
        return total

    return min(range(MAX_SKEW + 1), key=price) if width > 1 else 0


def _price(freq: int) -> int:
    """256 · log2(4096 / freq), rounded up."""
    return 256 * 12 + 1 - (freq**256).bit_length()
