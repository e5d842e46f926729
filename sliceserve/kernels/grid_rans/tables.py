"""Frequency tables in a few bits a symbol, for the kernels that numba compiles."""

import numpy as np
from numba import njit

from sliceserve.kernels.grid_rans.layout import WEIGHTS
from sliceserve.kernels.rans import (
    TOTAL,
    cumulate,
    normalise,
    note_field,
    pop_field,
    price,
    symbols_by_slot,
)

_WEIGHTS = np.array(WEIGHTS)
_WEIGHT_BITS = 4

_PRICES = np.array([0] + [price(freq) for freq in range(1, TOTAL + 1)])


@njit(cache=True, nogil=True)
def weigh(counts, places):
    """Fill in the place of each symbol's weight; what table and counted symbols cost, in 1/256
    bits, to within the rounding of frequencies."""
    most = counts.max()
    total = 0
    for i in range(counts.size):
        places[i] = _nearest(counts[i], most)
        total += _WEIGHTS[places[i]]
    cost = 0
    previous = 0
    for i in range(counts.size):
        cost += 256 if places[i] == previous else 256 * (1 + _WEIGHT_BITS)
        previous = places[i]
        if counts[i] > 0:
            cost += counts[i] * _PRICES[max(1, _WEIGHTS[places[i]] * TOTAL // total)]
    return cost


@njit(cache=True, nogil=True)
def _nearest(count, most):
    """The place of the weight whose ratio to the largest is nearest to count / most; of a symbol
    that occurs, not the first."""
    if count == 0:
        return 0
    place = 1
    twice = 2 * count * _WEIGHTS[-1]
    while place + 1 < _WEIGHTS.size and twice >= most * (_WEIGHTS[place] + _WEIGHTS[place + 1]):
        place += 1
    return place


@njit(cache=True, nogil=True)
def note_table(starts, freqs, count, places):
    """The table as symbols; the count after them."""
    previous = 0
    for i in range(places.size):
        is_same = places[i] == previous
        count = note_field(starts, freqs, count, is_same, 1)
        if not is_same:
            count = note_field(starts, freqs, count, places[i], _WEIGHT_BITS)
        previous = places[i]
    return count


@njit(cache=True, nogil=True)
def pop_table(size, state, data, position, end):
    """The starts and symbols by slot of a table of ``size`` symbols, or none where all weights are
    zero; the state and the position after it."""
    places = np.zeros(size, np.int64)
    previous = np.int64(0)
    for i in range(size):
        is_same, state, position = pop_field(1, state, data, position, end)
        if not is_same:
            previous, state, position = pop_field(_WEIGHT_BITS, state, data, position, end)
        places[i] = previous
    if places.max() == 0:
        return np.empty(0, np.int64), np.empty(0, np.int16), state, position
    starts = starts_of(places)
    return starts, symbols_by_slot(starts), state, position


@njit(cache=True, nogil=True)
def starts_of(places):
    """(n,) places of weights, not all zero → (n + 1,) starts."""
    return cumulate(normalise(_WEIGHTS[places]))
