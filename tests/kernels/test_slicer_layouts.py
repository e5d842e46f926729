"""The raw and the entropy-coded layout of SLICER's packets say the same."""

from math import exp

import numpy as np
import pytest

from sliceserve.kernels.slicer import SlicerError, cpu
from sliceserve.kernels.slicer.compress import shortest
from sliceserve.kernels.slicer.layout import CODED, SKEWED, block_end
from sliceserve.kernels.slicer.reference_layouts import Fields

hypothesis = pytest.importorskip("hypothesis")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies


@st.composite
def fields(draw):
    """(fields, hidden size): any that an encoder could write, codes of any skew."""
    hidden_size = draw(st.integers(1, 200))
    num_kept = draw(st.integers(0, hidden_size))
    num_blocks = 2 ** draw(st.integers(0, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    block = np.repeat(
        np.arange(num_blocks),
        np.diff([block_end(j, num_kept, num_blocks) for j in range(-1, num_blocks)]),
    )
    ranges = np.sort(rng.integers(0x80, 0x7F80, 2 * num_blocks))[::-1].tolist()
    blocks = [(0, 0, 0)] * num_blocks
    for j in set(block.tolist()):
        blocks[j] = (draw(st.integers(0, 12)), ranges[2 * j + 1], ranges[2 * j])
    rng.shuffle(block)
    skewed = rng.random(num_kept) ** draw(st.sampled_from([1, 3, 20]))
    code = [int(x * 2 ** blocks[j][0]) for x, j in zip(skewed, block, strict=True)]
    kept = np.sort(rng.permutation(hidden_size)[:num_kept]).tolist()
    negative = rng.integers(0, 2, num_kept).tolist()
    return Fields(blocks, kept, block.tolist(), negative, code), hidden_size


@given(drawn=fields())
@settings(max_examples=150, deadline=None)
def test_transcodes_as_the_reference(drawn):
    written, hidden_size = drawn
    raw = written.raw(hidden_size)
    row = np.frombuffer(raw + bytes(16), np.uint8)[None]
    [packet] = shortest(row, np.array([len(raw)]), hidden_size)
    assert packet == written.shortest(hidden_size)
    for layout in (raw, written.coded(hidden_size)):
        assert Fields.read(layout, hidden_size) == written
    data, starts = cpu.checked([packet, raw, packet], hidden_size)
    assert data[: starts[3]].tobytes() == 3 * raw


def test_the_shorter_layout_is_taken():
    codes = [0] * 99 + [255]
    skewed = Fields([(8, 0x3F80, 0x4000)], list(range(100)), [0] * 100, [0, 1] * 50, codes)
    assert skewed.shortest(100)[0] & CODED
    # In one element there is less to save than a state costs.
    plain = Fields([(12, 0x0080, 0x7F7F)], [0], [0], [0], [1234])
    assert not plain.shortest(1)[0] & CODED


def test_a_damaged_stream_is_named_after_what_precedes_it():
    codes = list(range(100))
    packet = Fields(
        [(8, 0x3F80, 0x4000)], list(range(0, 200, 2)), [0] * 100, [0] * 100, codes
    ).coded(200)
    for packets, index in (([packet, packet[:-1]], 1), ([packet, b"", packet[:-1]], 1)):
        with pytest.raises(SlicerError) as caught:
            cpu.checked(packets, 200)
        assert caught.value.index == index
    with pytest.raises(SlicerError, match="entropy-coded"):
        cpu.checked([packet + b"\0"], 200)


def test_odds_halve_from_bit_to_bit():
    """Of an exponential density, whose bits are independent: z of one is half that of the next."""
    for entry, odds in enumerate(SKEWED[1:]):
        assert odds == round(4096 / (1 + exp(2.0 ** (entry - 2))))
