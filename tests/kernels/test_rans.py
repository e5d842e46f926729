from bisect import bisect_right

import numpy as np
import pytest
from numba import njit

from sliceserve.kernels import rans
from sliceserve.kernels.rans import reference

hypothesis = pytest.importorskip("hypothesis")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies


@njit
def _encode(symbols, freqs, starts, payload, out):
    state = rans.INITIAL + payload
    position = out.size
    for i in range(symbols.size - 1, -1, -1):
        symbol = symbols[i]
        state, position = rans.push(state, starts[symbol], freqs[symbol], out, position)
    return rans.finish(state, out, position)


@njit
def _decode(data, begin, end, freqs, starts, symbols):
    by_slot = rans.symbols_by_slot(starts)
    state, position = rans.open_stream(data, begin, end)
    for i in range(symbols.size):
        symbol = by_slot[rans.slot(state)]
        symbols[i] = symbol
        state, position = rans.pop(state, starts[symbol], freqs[symbol], data, position, end)
    return state - rans.INITIAL, rans.is_closed(state, position, end)


def encode(symbols, freqs, payload=0):
    out = np.zeros(rans.max_bytes(len(symbols)), np.uint8)
    position = _encode(np.array(symbols, np.int64), freqs, rans.cumulate(freqs), payload, out)
    return out[position:].tobytes()


def decode(stream, freqs, num_symbols):
    """Symbols and payload, or None. Around the stream there is what must not be read."""
    data = np.frombuffer(b"\xff" + stream + b"\xff" * 5, np.uint8)
    symbols = np.zeros(num_symbols, np.int64)
    end = 1 + len(stream)
    payload, closed = _decode(data, 1, end, freqs, rans.cumulate(freqs), symbols)
    return (symbols.tolist(), payload) if closed else None


def encode_by_reference(symbols, freqs, payload):
    starts = rans.cumulate(freqs)
    return reference.encode([(int(starts[s]), int(freqs[s])) for s in symbols], payload)


def decode_by_reference(stream, freqs, num_symbols):
    starts = rans.cumulate(freqs).tolist()
    symbols = []
    try:
        decoder = reference.Decoder(stream)
        for _ in range(num_symbols):
            symbols.append(bisect_right(starts, decoder.slot) - 1)
            decoder.pop(starts[symbols[-1]], int(freqs[symbols[-1]]))
        return symbols, decoder.close()
    except ValueError:
        return None


messages = st.integers(1, 40).flatmap(
    lambda num_kinds: st.tuples(
        st.lists(st.integers(1, 10**6), min_size=num_kinds, max_size=num_kinds),
        st.lists(st.integers(0, num_kinds - 1), max_size=200),
        st.integers(0, 0xFFFF),
    )
)


@given(message=messages)
@settings(max_examples=200, deadline=None)
def test_writes_and_reads_as_the_reference(message):
    counts, symbols, payload = message
    freqs = rans.normalise(np.array(counts, np.int64))
    stream = encode_by_reference(symbols, freqs, payload)
    assert encode(symbols, freqs, payload) == stream
    assert decode(stream, freqs, len(symbols)) == (symbols, payload)
    assert decode_by_reference(stream, freqs, len(symbols)) == (symbols, payload)


@given(stream=st.binary(max_size=60), num_symbols=st.integers(0, 60))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_symbols_or_refused_as_the_reference_does(stream, num_symbols):
    freqs = rans.normalise(np.array([5, 1, 30, 2000], np.int64))
    expected = decode_by_reference(stream, freqs, num_symbols)
    assert decode(stream, freqs, num_symbols) == expected


def test_a_stream_that_ends_early_or_late_is_refused():
    freqs = rans.normalise(np.array([3, 2, 1], np.int64))
    symbols = [0, 1, 2] * 50
    stream = encode(symbols, freqs, 12345)
    for length in range(len(stream)):
        assert decode(stream[:length], freqs, len(symbols)) is None
    assert decode(stream + bytes(2), freqs, len(symbols)) is None


def test_costs_what_the_frequencies_say():
    rng = np.random.default_rng(0)
    freqs = rans.normalise(np.array([700, 200, 90, 9, 1], np.int64))
    symbols = rng.choice(5, 20_000, p=freqs / rans.TOTAL)
    bits = -np.log2(freqs[symbols] / rans.TOTAL).sum()
    assert bits <= 8 * len(encode(symbols, freqs)) <= bits * 1.0005 + 32


def test_a_certain_symbol_costs_nothing():
    freqs = rans.normalise(np.array([0, 7, 0], np.int64))
    assert freqs.tolist() == [0, rans.TOTAL, 0]
    stream = encode([1] * 1000, freqs, 0xFFFF)
    assert len(stream) == rans.STATE_BYTES
    assert decode(stream, freqs, 1000) == ([1] * 1000, 0xFFFF)


@given(
    counts=st.lists(
        st.one_of(st.just(0), st.integers(0, 100), st.integers(0, 2**40)), min_size=1, max_size=300
    ).filter(any)
)
@settings(max_examples=200, deadline=None)
def test_normalised_counts(counts):
    freqs = rans.normalise(np.array(counts, np.int64))
    assert freqs.sum() == rans.TOTAL
    assert ((freqs > 0) == (np.array(counts) > 0)).all()
    for smaller, larger in zip(np.argsort(counts)[:-1], np.argsort(counts)[1:], strict=True):
        assert freqs[smaller] <= freqs[larger] + 1


def test_normalised_counts_of_a_full_table():
    counts = np.ones(rans.TOTAL, np.int64)
    counts[17] = 2**40
    assert (rans.normalise(counts) == 1).all()


@pytest.mark.parametrize("seed", range(5))
def test_normalisation_is_the_best_but_for_a_hair(seed):
    """No exchange of one slot between two symbols saves more than a ten-thousandth."""
    counts = np.random.default_rng(seed).geometric(0.002, 12).astype(np.int64)
    freqs = rans.normalise(counts)

    def cost(table):
        return -(counts * np.log2(table / rans.TOTAL)).sum()

    for taken in range(12):
        for given_to in range(12):
            table = freqs.copy()
            table[taken] -= 1
            table[given_to] += 1
            assert table.min() == 0 or cost(table) >= cost(freqs) * (1 - 1e-4)


def test_symbols_by_slot():
    by_slot = rans.symbols_by_slot(rans.cumulate(np.array([0, 96, 0, 4000, 0], np.int64)))
    assert by_slot.tolist() == [1] * 96 + [3] * 4000
