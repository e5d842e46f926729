"""The three implementations of SLICER write and read the same bytes."""

import numpy as np
import pytest
import torch

from sliceserve.kernels import slicer
from sliceserve.kernels.slicer import EncoderSettings, SlicerError, reference


def settings(hidden_size, sparsity=0.5, asymmetry=1.0, num_blocks=4, distortion=0.01, max_bits=8):
    return EncoderSettings(
        num_kept=round((1 - sparsity) * hidden_size),
        asymmetry=asymmetry,
        num_blocks=num_blocks,
        distortion=int(distortion * 2**slicer.DISTORTION_SHIFT),
        max_bits=max_bits,
    )


def rows_of_every_kind(hidden_size):
    rows = torch.randn(9, hidden_size)
    rows[:, ::97] *= 1000
    rows[1] = 0
    rows[2] = rows[2].round()  # ties
    rows[3] *= 1e-38  # subnormal numbers among normal ones
    rows[4] = rows[4].clamp(-3, 3) * 1e38  # beyond the largest bfloat16
    rows[4, 5] = torch.finfo(torch.float32).max
    rows[5] = -1.5
    rows[6, 1:] = 0
    rows[7] = -0.0
    rows[8] = rows[8].abs().neg()
    return rows


def bits_of(rows):
    return rows.view(torch.int32).tolist()


def assert_agrees(backend, rows, chosen):
    operation = backend.load("slicer")
    expected = reference.encode(rows, chosen)
    packets = operation.encode(rows.to(backend.device), chosen)
    assert packets == expected
    out = torch.full(rows.shape, torch.nan, device=backend.device)
    operation.decode(packets, out)
    assert bits_of(out.cpu()) == bits_of(reference.decode(expected, rows.shape[1]))


KNOBS = [
    {},
    {"sparsity": 0.0, "num_blocks": 1, "max_bits": 12, "distortion": 0.0},
    {"sparsity": 0.95, "asymmetry": 3.0, "num_blocks": 2},
    {"sparsity": 0.8, "asymmetry": 0.3, "num_blocks": 16, "distortion": 0.001, "max_bits": 5},
    {"sparsity": 0.2, "num_blocks": 8, "distortion": 1.0, "max_bits": 1},
    {"sparsity": 0.999},
]


@pytest.mark.parametrize("knobs", KNOBS)
@pytest.mark.parametrize("hidden_size", [1, 7, 64, 65, 127, 576, 1000])
def test_cpu_writes_and_reads_as_the_reference(hidden_size, knobs):
    from sliceserve.kernels.slicer import cpu

    rows = rows_of_every_kind(max(hidden_size, 6))[:, :hidden_size].contiguous()
    chosen = settings(hidden_size, **knobs)
    packets = cpu.encode(rows, chosen)
    assert packets == reference.encode(rows, chosen)
    out = torch.full(rows.shape, torch.nan)
    cpu.decode(packets, out)
    assert bits_of(out) == bits_of(reference.decode(packets, hidden_size))


@pytest.mark.parametrize(
    ("hidden_size", "knobs"), [(64, KNOBS[3]), (65, KNOBS[0]), (127, KNOBS[2]), (576, KNOBS[1])]
)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_backend_writes_and_reads_as_the_reference(backend, hidden_size, knobs):
    assert_agrees(backend, rows_of_every_kind(hidden_size)[:6], settings(hidden_size, **knobs))


@pytest.mark.parametrize("hidden_size", [4096, 8192])
def test_backend_agrees_on_large_rows(backend, hidden_size):
    rows = rows_of_every_kind(hidden_size)[:1]
    assert_agrees(backend, rows, settings(hidden_size, sparsity=0.5))


def test_knobs_drawn_at_random():
    from sliceserve.kernels.slicer import cpu

    rng = np.random.default_rng(0)
    for _ in range(60):
        hidden_size = int(rng.integers(1, 300))
        chosen = EncoderSettings(
            num_kept=int(rng.integers(0, hidden_size + 1)),
            asymmetry=float(rng.uniform(0.1, 4)),
            num_blocks=int(2 ** rng.integers(0, 5)),
            distortion=int(rng.integers(0, 2**26)),
            max_bits=int(rng.integers(1, 13)),
        )
        rows = torch.from_numpy(rng.standard_t(2, (2, hidden_size)).astype(np.float32))
        assert cpu.encode(rows, chosen) == reference.encode(rows, chosen)


def test_rows_of_any_stride_and_dtype(backend):
    operation = backend.load("slicer")
    wide = torch.randn(3, 200, device=backend.device).half()
    rows = wide[:, 10:110]
    chosen = settings(100)
    packets = operation.encode(rows, chosen)
    assert packets == reference.encode(rows.cpu(), chosen)
    out = torch.zeros(3, 200, device=backend.device, dtype=torch.float16)
    operation.decode(packets, out[:, 50:150])
    assert torch.equal(out[:, 50:150].cpu(), reference.decode(packets, 100).half())
    assert not out[:, :50].any() and not out[:, 150:].any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_names_the_row_that_is_not_finite(backend, value):
    rows = torch.randn(3, 64, device=backend.device)
    rows[1, 63] = value
    with pytest.raises(SlicerError) as caught:
        backend.load("slicer").encode(rows, settings(64))
    assert caught.value.index == 1


def test_no_rows(backend):
    operation = backend.load("slicer")
    empty = torch.empty(0, 64, device=backend.device)
    assert operation.encode(empty, settings(64)) == []
    operation.decode([], empty)


def test_ties_go_to_the_lowest_index():
    row = torch.tensor([[1.0, -2.0, 2.0, 1.0, -1.0, 2.0, 0.0, 1.0]])
    chosen = settings(8, sparsity=0.5, num_blocks=1)
    kept = reference.decode(reference.encode(row, chosen), 8)[0].nonzero().flatten()
    assert kept.tolist() == [0, 1, 2, 5]


def test_asymmetry_weighs_negative_elements():
    row = torch.tensor([[1.0, -1.5, 1.2, -3.0]])
    chosen = settings(4, sparsity=0.5, asymmetry=0.5, num_blocks=1, max_bits=12, distortion=0.0)
    decoded = reference.decode(reference.encode(row, chosen), 4)[0]
    # Scores 1, 0.75, 1.2 and 1.5.
    assert decoded.nonzero().flatten().tolist() == [2, 3]
    assert decoded[2:].tolist() == pytest.approx([1.2, -3.0], rel=1e-3)


@pytest.mark.parametrize("distortion", [0.3, 0.01, 0.001])
def test_every_block_keeps_its_distortion_budget(distortion):
    rows = torch.randn(20, 576)
    rows[:, ::100] *= 300
    chosen = settings(576, distortion=distortion, max_bits=12)
    decoded = reference.decode(reference.encode(rows, chosen), 576)
    widths = []
    for row, value in zip(rows.double(), decoded.double(), strict=True):
        order = torch.argsort(row.abs(), descending=True, stable=True)[: chosen.num_kept]
        for block in order.chunk(4):
            error = (row[block] - value[block]).square().sum()
            assert error <= distortion * row[block].square().sum() * (1 + 1e-5)
        widths.append(len(reference.encode(row[None].float(), chosen)[0]))
    # The budget is spent, too: it is no larger width that honours it.
    wider = settings(576, distortion=distortion / 30, max_bits=12)
    assert sum(widths) < 0.95 * sum(map(len, reference.encode(rows, wider)))


def test_keeps_exactly_k():
    rows = torch.randn(5, 300)
    for num_kept in (0, 1, 3, 29, 150, 300):
        chosen = settings(300, sparsity=1 - num_kept / 300)
        decoded = reference.decode(reference.encode(rows, chosen), 300)
        assert (decoded != 0).sum(dim=1).tolist() == [num_kept] * 5
