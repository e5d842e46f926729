"""The rANS baseline in NumPy and plain Python: what the bytes are by definition."""

from bisect import bisect_right
from collections import Counter
from itertools import pairwise

import numpy as np

from sliceserve.kernels.grid_rans.layout import (
    HEADER_BYTES,
    MAX_COUNT_BITS,
    MIN_STEP,
    ROW_LENGTHS,
    WEIGHTS,
    max_step,
)
from sliceserve.kernels.rans import cumulate, normalise, price
from sliceserve.kernels.rans.reference import Decoder, Encoder


def encode(row: np.ndarray, num_levels: int) -> bytes:
    """(d,) float32, finite → one packet."""
    step, zero, codes = _quantize(row, num_levels)
    where = np.nonzero(codes != zero)[0].tolist()
    encoder = Encoder()
    if where:
        place = _best_shape(where, row.size)
        counts, columns = _reshape(where, row.size, place)
        values = [int(code - (code > zero)) for code in codes[where]]
        encoder.field(4, place)
        encoder.field(MAX_COUNT_BITS, max(counts))
        sizes = _table_sizes(max(counts), place, row.size, num_levels)
        tables = [
            _places(s, size) for s, size in zip((counts, columns, values), sizes, strict=True)
        ]
        for table in tables:
            _write_table(encoder, table)
        for symbols, table in zip((counts, columns, values), tables, strict=True):
            starts = _starts(table)
            for symbol in symbols:
                encoder.symbol(starts[symbol], starts[symbol + 1] - starts[symbol])
    else:
        encoder.field(4, 0)
        encoder.field(MAX_COUNT_BITS, 0)
    return bytes([num_levels - 1, zero]) + encoder.stream(step)


def decode(packet: bytes, hidden_size: int) -> np.ndarray:
    """A valid packet → (d,) float32."""
    num_levels, zero = packet[0] + 1, packet[1]
    decoder = Decoder(packet[HEADER_BYTES:])
    place = decoder.field(4)
    most = decoder.field(MAX_COUNT_BITS)
    codes = np.full(hidden_size, zero)
    if most > 0:
        sizes = _table_sizes(most, place, hidden_size, num_levels)
        of_counts, of_columns, of_values = [_starts(_read_table(decoder, n)) for n in sizes]
        row_starts = range(0, hidden_size, ROW_LENGTHS[place])
        counts = [_read_symbol(decoder, of_counts) for _ in row_starts]
        where = [
            start + _read_symbol(decoder, of_columns)
            for start, count in zip(row_starts, counts, strict=True)
            for _ in range(count)
        ]
        for i in where:
            value = _read_symbol(decoder, of_values)
            codes[i] = value + (value >= zero)
    return (codes - zero).astype(np.float32) * _bfloat16(decoder.close())


def _quantize(row: np.ndarray, num_levels: int) -> tuple[int, int, np.ndarray]:
    """The step as bfloat16 bits, the code of zero, and all codes."""
    low, high = min(row.min(), np.float32(0)), max(row.max(), np.float32(0))
    with np.errstate(over="ignore"):
        exact = high / np.float32(num_levels - 1) - low / np.float32(num_levels - 1)
    step = min((int(exact.view(np.uint32)) + 0xFFFF) >> 16, max_step(num_levels))
    if step < MIN_STEP:
        return 0, 0, np.zeros(row.size, np.int64)
    zero = min(int(np.rint(-low / _bfloat16(step))), num_levels - 1)
    codes = np.rint(row / _bfloat16(step)).astype(np.int64) + zero
    return step, zero, codes.clip(0, num_levels - 1)


def _bfloat16(bits: int) -> np.float32:
    return np.uint32(bits << 16).view(np.float32)


def _best_shape(where: list[int], size: int) -> int:
    def cost(place: int) -> int:
        counts, columns = _reshape(where, size, place)
        num_columns = min(ROW_LENGTHS[place], size)
        return _cost(counts, max(counts) + 1) + _cost(columns, num_columns)

    longer = [place for place, length in enumerate(ROW_LENGTHS) if length >= size]
    return min(range(min([*longer, len(ROW_LENGTHS) - 1]) + 1), key=cost)


def _reshape(where: list[int], size: int, place: int) -> tuple[list[int], list[int]]:
    """How many elements each row of the matrix has, and each element's column."""
    row_length = ROW_LENGTHS[place]
    per_row = Counter(i // row_length for i in where)
    return [per_row[r] for r in range(-(-size // row_length))], [i % row_length for i in where]


def _table_sizes(most: int, place: int, hidden_size: int, num_levels: int) -> tuple[int, int, int]:
    return most + 1, min(ROW_LENGTHS[place], hidden_size), num_levels - 1


def _cost(symbols: list[int], size: int) -> int:
    """What a section and its table cost, in 1/256 bits, before frequencies are rounded."""
    places = _places(symbols, size)
    total = sum(WEIGHTS[place] for place in places)
    of_table = sum(256 if place == before else 5 * 256 for before, place in pairwise([0, *places]))
    return of_table + sum(price(max(1, WEIGHTS[places[s]] * 4096 // total)) for s in symbols)


def _places(symbols: list[int], size: int) -> list[int]:
    """Each symbol's weight: the nearest in proportion to the commonest symbol's, which has the
    largest; upwards at a tie, and of a symbol that occurs at least 1."""
    counts = Counter(symbols)
    most = max(counts.values())

    def nearest(count: int) -> int:
        scaled = [
            place
            for place in range(2, len(WEIGHTS))
            if 2 * count * WEIGHTS[-1] >= most * (WEIGHTS[place - 1] + WEIGHTS[place])
        ]
        return max([1, *scaled]) if count else 0

    return [nearest(counts[symbol]) for symbol in range(size)]


def _write_table(encoder: Encoder, places: list[int]) -> None:
    for before, place in pairwise([0, *places]):
        encoder.field(1, place == before)
        if place != before:
            encoder.field(4, place)


def _read_table(decoder: Decoder, size: int) -> list[int]:
    places = [0]
    for _ in range(size):
        places.append(places[-1] if decoder.field(1) else decoder.field(4))
    return places[1:]


def _starts(places: list[int]) -> list[int]:
    weights = np.array([WEIGHTS[place] for place in places], np.int64)
    return cumulate(normalise(weights)).tolist()


def _read_symbol(decoder: Decoder, starts: list[int]) -> int:
    symbol = bisect_right(starts, decoder.slot) - 1
    decoder.pop(starts[symbol], starts[symbol + 1] - starts[symbol])
    return symbol
