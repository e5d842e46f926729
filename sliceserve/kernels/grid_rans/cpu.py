"""The rANS baseline on the CPU, compiled by numba; byte for byte ``reference``."""

from collections.abc import Sequence

import numpy as np
import torch
from numba import njit

from sliceserve.kernels import rans
from sliceserve.kernels.grid_rans import layout
from sliceserve.kernels.grid_rans.layout import (
    HEADER_BYTES,
    MAX_COUNT_BITS,
    MAX_LEVELS,
    MIN_STEP,
    ROW_LENGTHS,
    GridError,
)
from sliceserve.kernels.grid_rans.tables import note_table, pop_table, starts_of, weigh
from sliceserve.kernels.rans import note_field, pop_field

_ROW_LENGTHS = np.array(ROW_LENGTHS)
_ROW_LENGTH_BITS = 4
_MAX_STEPS = np.array([0, 0] + [layout.max_step(levels) for levels in range(2, MAX_LEVELS + 1)])
_MAX_FLOAT = float(np.finfo(np.float32).max)
# Two symbols for each of a table's, and its two tables of up to 257 beside the codes'.
_MAX_TABLE_SYMBOLS = 2 * (2 * (ROW_LENGTHS[-1] + 1) + MAX_LEVELS) + 2


def encode(hidden: torch.Tensor, num_levels: int) -> list[bytes]:
    """(T, d) float32 → packets."""
    rows = hidden.contiguous().numpy()
    max_symbols = _MAX_TABLE_SYMBOLS + 3 * rows.shape[1]
    out = np.empty((rows.shape[0], HEADER_BYTES + rans.max_bytes(max_symbols)), np.uint8)
    begins = np.empty(rows.shape[0], np.int64)
    bad_row = _encode_rows(rows, num_levels, out, begins, max_symbols)
    if bad_row >= 0:
        raise GridError("a value is not finite", bad_row)
    return [row[begin:].tobytes() for row, begin in zip(out, begins.tolist(), strict=True)]


def decode(packets: Sequence[bytes], hidden_size: int) -> torch.Tensor:
    """Packets → (len(packets), hidden_size) float32. Raises GridError for the first bad one."""
    data = np.frombuffer(b"".join(packets), np.uint8)
    starts = np.zeros(len(packets) + 1, np.int64)
    np.cumsum([len(packet) for packet in packets], out=starts[1:])
    rows = np.empty((len(packets), hidden_size), np.float32)
    bad_row = _decode_rows(data, starts, rows)
    if bad_row >= 0:
        raise GridError(
            "its bytes are no matrix of codes: a count, column, step or table is out of bounds, "
            "or it does not end with its last code",
            bad_row,
        )
    return torch.from_numpy(rows)


@njit(cache=True, nogil=True)
def _encode_rows(rows, num_levels, out, begins, max_symbols):
    """Fill the ends of ``out``; the first row that is not finite, or -1."""
    starts = np.empty(max_symbols, np.int64)
    freqs = np.empty(max_symbols, np.int64)
    codes = np.empty(rows.shape[1], np.int64)
    for t in range(rows.shape[0]):
        step, zero = _quantize(rows[t], num_levels, codes)
        if step < 0:
            return t
        count = _note_matrix(starts, freqs, codes, zero, num_levels)
        begin = rans.push_noted(starts, freqs, count, step, out[t], HEADER_BYTES) - HEADER_BYTES
        out[t, begin] = num_levels - 1
        out[t, begin + 1] = zero
        begins[t] = begin
    return -1


@njit(cache=True, nogil=True)
def _quantize(row, num_levels, codes):
    """Fill ``codes``; the step as bfloat16 bits (-1 for a row that is not finite) and the code of
    zero."""
    low = np.float32(0)
    high = np.float32(0)
    for x in row:
        if not abs(x) <= _MAX_FLOAT:
            return np.int64(-1), np.int64(0)
        low = min(low, x)
        high = max(high, x)
    last = np.float32(num_levels - 1)
    # Divided first: the difference of the largest numbers is infinite.
    exact = np.empty(1, np.float32)
    exact[0] = np.float32(high / last) - np.float32(low / last)
    step = min((np.int64(exact.view(np.uint32)[0]) + 0xFFFF) >> 16, _MAX_STEPS[num_levels])
    if step < MIN_STEP:
        codes[:] = 0
        return np.int64(0), np.int64(0)
    width = _bfloat16(step)
    zero = min(np.int64(np.rint(np.float32(-low / width))), num_levels - 1)
    for i in range(row.size):
        code = np.int64(np.rint(np.float32(row[i] / width))) + zero
        codes[i] = min(max(code, 0), num_levels - 1)
    return step, zero


@njit(cache=True, nogil=True)
def _bfloat16(bits):
    value = np.empty(1, np.uint32)
    value[0] = bits << 16
    return value.view(np.float32)[0]


@njit(cache=True, nogil=True)
def _note_matrix(starts, freqs, codes, zero, num_levels):
    """All symbols of a packet; their number."""
    where = np.nonzero(codes != zero)[0]
    if where.size == 0:
        count = note_field(starts, freqs, 0, 0, _ROW_LENGTH_BITS)
        return note_field(starts, freqs, count, 0, MAX_COUNT_BITS)
    row_length, counts, columns = _best_shape(where, codes.size)
    most = counts.max()
    count = note_field(starts, freqs, 0, row_length, _ROW_LENGTH_BITS)
    count = note_field(starts, freqs, count, most, MAX_COUNT_BITS)
    values = codes[where]
    values -= values > zero

    sections = (counts, columns, values)
    sizes = (most + 1, min(_ROW_LENGTHS[row_length], codes.size), num_levels - 1)
    table_starts = [np.empty(0, np.int64) for _ in range(3)]
    for k in range(3):
        places = np.empty(sizes[k], np.int64)
        weigh(np.bincount(sections[k], minlength=sizes[k]), places)
        count = note_table(starts, freqs, count, places)
        table_starts[k] = starts_of(places)
    for k in range(3):
        for symbol in sections[k]:
            starts[count] = table_starts[k][symbol]
            freqs[count] = table_starts[k][symbol + 1] - table_starts[k][symbol]
            count += 1
    return count


@njit(cache=True, nogil=True)
def _best_shape(where, size):
    """The place of the row length that makes a matrix of ``size`` with elements at ``where``
    cheapest, the first of several; each row's count, each element's column."""
    best = 0
    least = 1 << 62
    places = np.empty(_ROW_LENGTHS[-1] + 1, np.int64)
    for i in range(_ROW_LENGTHS.size):
        counts, columns = _reshape(where, size, _ROW_LENGTHS[i])
        of_counts = np.bincount(counts)
        of_columns = np.bincount(columns, minlength=min(_ROW_LENGTHS[i], size))
        cost = weigh(of_counts, places[: of_counts.size])
        cost += weigh(of_columns, places[: of_columns.size])
        if cost < least:
            least = cost
            best = i
        if _ROW_LENGTHS[i] >= size:
            break
    counts, columns = _reshape(where, size, _ROW_LENGTHS[best])
    return best, counts, columns


@njit(cache=True, nogil=True)
def _reshape(where, size, row_length):
    counts = np.zeros(-(-size // row_length), np.int64)
    columns = np.empty(where.size, np.int64)
    for r in range(where.size):
        row = where[r] // row_length
        counts[row] += 1
        columns[r] = where[r] - row * row_length
    return counts, columns


@njit(cache=True, nogil=True)
def _decode_rows(data, starts, rows):
    """Fill ``rows``; the first packet that no encoder wrote, or -1."""
    for t in range(rows.shape[0]):
        if not _decode_row(data, starts[t], starts[t + 1], rows[t]):
            return t
    return -1


@njit(cache=True, nogil=True)
def _decode_row(data, start, end, row):
    """Fill ``row``; whether the packet in bytes [start, end) is sound."""
    if end - start < HEADER_BYTES:
        return False
    num_levels = np.int64(data[start]) + 1
    zero = np.int64(data[start + 1])
    if num_levels < 2 or zero >= num_levels:
        return False
    levels = np.zeros(row.size, np.int64)
    state, position = rans.open_stream(data, start + HEADER_BYTES, end)
    is_matrix, state, position = _pop_matrix(levels, num_levels, zero, state, data, position, end)
    step = state - rans.INITIAL
    if not (is_matrix and rans.is_closed(state, position, end)):
        return False
    if step > _MAX_STEPS[num_levels] or 0 < step < MIN_STEP:
        return False
    # At most 8 significant bits times 8: exact.
    row[:] = levels.astype(np.float32) * _bfloat16(step)
    return True


@njit(cache=True, nogil=True)
def _pop_matrix(levels, num_levels, zero, state, data, position, end):
    """Add to ``levels``, all zero, each code less the zero point. Returns whether all symbols are
    in bounds, the state and the position."""
    place, state, position = pop_field(_ROW_LENGTH_BITS, state, data, position, end)
    most, state, position = pop_field(MAX_COUNT_BITS, state, data, position, end)
    row_length = _ROW_LENGTHS[place]
    num_columns = min(row_length, levels.size)
    if most == 0 or most > num_columns:
        return most == 0, state, position

    by_count, counts, state, position = pop_table(most + 1, state, data, position, end)
    by_column, columns, state, position = pop_table(num_columns, state, data, position, end)
    by_value, values, state, position = pop_table(num_levels - 1, state, data, position, end)
    if counts.size == 0 or columns.size == 0 or values.size == 0:
        return False, state, position

    num_elements = 0
    row_counts = np.empty(-(-levels.size // row_length), np.int64)
    for r in range(row_counts.size):
        row_counts[r], state, position = _pop(counts, by_count, state, data, position, end)
        num_elements += row_counts[r]
    # Rows may claim more than there is.
    if num_elements > levels.size:
        return False, state, position
    where = np.empty(num_elements, np.int64)
    i = 0
    for r in range(row_counts.size):
        previous = -1
        for _ in range(row_counts[r]):
            column, state, position = _pop(columns, by_column, state, data, position, end)
            where[i] = r * row_length + column
            if column <= previous or where[i] >= levels.size:
                return False, state, position
            previous = column
            i += 1
    for element in where:
        value, state, position = _pop(values, by_value, state, data, position, end)
        levels[element] = value + (value >= zero) - zero
    return True, state, position


@njit(forceinline=True)
def _pop(symbols, starts, state, data, position, end):
    """The next symbol of a table."""
    symbol = np.int64(symbols[rans.slot(state)])
    start = starts[symbol]
    state, position = rans.pop(state, start, starts[symbol + 1] - start, data, position, end)
    return symbol, state, position
