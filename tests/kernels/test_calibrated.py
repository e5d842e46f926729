"""The implementations of the calibrated codec's kernel write and read the same bytes."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from sliceserve.kernels import calibrated, rans
from sliceserve.kernels.calibrated import CalibratedError, Tables, reference

hypothesis = pytest.importorskip("hypothesis")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies

LAMBDA = round(0.4 * 4096)


def tables_with(hidden_size, num_lanes=1, seed=0, base_scales=None):
    """Tables whose rows are random but plausible: small symbols are frequent at small scales."""
    rng = np.random.default_rng(seed)
    scale = np.arange(calibrated.NUM_SCALES)[:, None, None]
    decay = np.exp(-np.arange(calibrated.NUM_SYMBOLS) / (1 + scale / 8))
    counts = rng.gamma(2, size=(4, 64, 2, 24)) * decay * 2**20
    frequencies = np.array([rans.normalise(row) for row in _rows(counts)], np.uint16)
    shift = rng.integers(-64, 65, (64, 2, 12))
    centroids = np.where(np.arange(12) > 0, calibrated.NOMINAL + shift, 0).astype(np.int32)
    if base_scales is None:
        base_scales = np.sort(rng.integers(0, 64, hidden_size))[::-1]

    class Laned(Tables):
        """Several lanes at small sizes."""

    Laned.num_lanes = num_lanes
    return Laned(
        frequencies=frequencies.reshape(4, 64, 2, 24),
        centroids=centroids,
        class_thresholds=np.array([8, 22, 42], np.int64) * hidden_size,
        base_scales=np.ascontiguousarray(base_scales, np.uint8),
    )


def _rows(counts):
    return np.maximum(counts, 1).astype(np.int64).reshape(-1, 24)


def rows_for(tables, num_rows, seed=0):
    """Inputs of about the tables' scales with heavy tails; some rows are zero or extreme."""
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 32, num_rows)
    scales = np.maximum(tables.base_scales.astype(int) - points[:, None], 0)
    values = rng.standard_t(2, scales.shape) * calibrated.SIGMAS[scales]
    values *= rng.choice([0.2, 1, 2, 30], (num_rows, 1))
    values = np.clip(values, -calibrated.MAX_INPUT, calibrated.MAX_INPUT)
    values[::5] = 0
    values[3::7] = rng.choice([-1, 1], scales.shape[1]) * calibrated.MAX_INPUT
    payloads = rng.integers(0, 2**24, num_rows)
    return (
        torch.from_numpy(values.astype(np.int32)),
        torch.from_numpy(points.astype(np.uint8)),
        torch.from_numpy(payloads.astype(np.int32)),
    )


def lists(tensors):
    return [tensor.tolist() for tensor in tensors]


def assert_agrees(
    y64, points, payloads, tables, lambda_, payload_bytes, operation=calibrated, device="cpu"
):
    rows = (y64, points, payloads)
    settings = (tables, lambda_, payload_bytes)
    expected, expected_rows = reference.encode(*rows, *settings)
    packets, reconstructed = operation.encode(*(each.to(device) for each in rows), *settings)
    assert packets == expected
    assert reconstructed.tolist() == expected_rows.tolist()
    decoded = operation.decode(packets, tables, payload_bytes, device)
    assert [each.device.type for each in decoded] == [device] * 3
    assert lists(decoded) == lists((expected_rows, points, payloads))
    assert lists(reference.decode(packets, tables, payload_bytes)) == lists(decoded)


@pytest.mark.parametrize("payload_bytes", [0, 2, 3])
@pytest.mark.parametrize(("hidden_size", "num_lanes"), [(1, 1), (24, 1), (23, 2), (67, 4), (3, 8)])
def test_cpu_writes_and_reads_as_the_reference(hidden_size, num_lanes, payload_bytes):
    tables = tables_with(hidden_size, num_lanes)
    y64, points, payloads = rows_for(tables, 20)
    payloads &= (1 << 8 * payload_bytes) - 1
    for lambda_ in (0, LAMBDA, calibrated.MAX_LAMBDA):
        assert_agrees(y64, points, payloads, tables, lambda_, payload_bytes)


def test_cpu_quantizes_as_the_reference():
    tables = tables_with(50, 2)
    y64, points, _ = rows_for(tables, 20)
    decided = calibrated.quantize(y64, points, tables, LAMBDA)
    assert [each.dtype for each in decided] == [torch.int16, torch.uint8, torch.uint8]
    assert lists(decided) == lists(reference.quantize(y64, points, tables, LAMBDA))
    assert len(set(decided[2].tolist())) == 4


def test_cpu_agrees_on_rows_of_a_model():
    tables = tables_with(576, base_scales=np.linspace(40, 8, 576).round())
    assert_agrees(*rows_for(tables, 3), tables, LAMBDA, 3)


@pytest.mark.parametrize(
    ("hidden_size", "num_lanes", "payload_bytes"), [(1, 1, 3), (10, 1, 2), (15, 4, 0), (12, 8, 3)]
)
def test_backend_writes_and_reads_as_the_reference(backend, hidden_size, num_lanes, payload_bytes):
    tables = tables_with(hidden_size, num_lanes)
    # Two programs, of which the second has empty places.
    y64, points, payloads = rows_for(tables, 32 // num_lanes + 3)
    payloads &= (1 << 8 * payload_bytes) - 1
    operation = backend.load("calibrated")
    assert_agrees(y64, points, payloads, tables, LAMBDA, payload_bytes, operation, backend.device)


@given(
    hidden_size=st.integers(1, 40),
    num_lanes=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 5),
    lambda_=st.integers(0, calibrated.MAX_LAMBDA),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_any_row_agrees(hidden_size, num_lanes, seed, lambda_, data):
    tables = tables_with(hidden_size, num_lanes, seed)
    # Halfway between levels, where ties are, as often as anywhere.
    component = st.one_of(
        st.integers(-20, 20).map(lambda step: 32 * step),
        st.integers(-calibrated.MAX_INPUT, calibrated.MAX_INPUT),
    )
    row = data.draw(st.lists(component, min_size=hidden_size, max_size=hidden_size))
    point = data.draw(st.integers(0, 31))
    payload = data.draw(st.integers(0, 0xFFFF))
    y64 = torch.tensor([row], dtype=torch.int32)
    points = torch.tensor([point], dtype=torch.uint8)
    payloads = torch.tensor([payload], dtype=torch.int32)
    assert_agrees(y64, points, payloads, tables, lambda_, 2)


@pytest.mark.parametrize("seed", range(6))
def test_no_path_through_the_trellis_is_cheaper(seed):
    """Against every path of the candidates, each lane on its own."""
    tables = tables_with(6, 1, seed)
    y64, points, _ = rows_for(tables, 8, seed)
    levels, quantizers, classes = calibrated.quantize(y64, points, tables, LAMBDA)
    for t in range(len(y64)):
        scales = np.maximum(tables.base_scales.astype(int) - int(points[t]), 0).tolist()

        def total(components, t=t, scales=scales):
            return sum(
                reference.cost(y, level, scale, quantizer, int(classes[t]), tables, LAMBDA)
                for y, scale, (level, quantizer) in zip(
                    y64[t].tolist(), scales, components, strict=True
                )
            )

        chosen = list(zip(levels[t].tolist(), quantizers[t].tolist(), strict=True))
        assert total(chosen) == min(map(total, every_path(y64[t].tolist())))


def every_path(row):
    for choices in product(range(3), repeat=len(row)):
        state, path = 0, []
        for y, choice in zip(row, choices, strict=True):
            levels = reference.candidates(y, state >> 1)
            if choice == len(levels):
                break
            path.append((levels[choice], state >> 1))
            state = reference.NEXT_STATE[state][levels[choice] & 1]
        else:
            yield path


def test_two_interleaved_quantizers_beat_one():
    """Without a rate to save, the error is that of the trellis, not that of a step of two."""
    tables = replace(tables_with(4000), centroids=np.repeat(calibrated.NOMINAL[None], 64, 0))
    y64 = torch.randint(-2000, 2000, (1, 4000), dtype=torch.int32)
    points = torch.zeros(1, dtype=torch.uint8)
    _, rows = calibrated.encode(y64, points, points.int(), tables, 0, 0)
    error = (rows - y64).double().square().mean().item() / 64**2
    # A uniform quantizer of as many levels would leave 1/3; four states gain about 1 dB.
    assert error < 0.28


def test_a_higher_lambda_spends_fewer_bytes_for_more_error():
    tables = tables_with(576, base_scales=np.linspace(30, 8, 576).round())
    y64, points, payloads = rows_for(tables, 6)
    points[:] = 4
    sizes, errors = [], []
    for lambda_ in (0, 800, 3200):
        packets, rows = calibrated.encode(y64, points, payloads, tables, lambda_, 3)
        sizes.append(sum(map(len, packets)))
        errors.append((rows - y64).double().norm().item())
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3
    assert errors == sorted(errors)


def test_costs_what_the_rates_say():
    tables = tables_with(4000, base_scales=np.linspace(40, 8, 4000).round())
    y64, points, payloads = rows_for(tables, 4)
    levels, quantizers, classes = calibrated.quantize(y64, points, tables, LAMBDA)
    packets, _ = calibrated.encode(y64, points, payloads, tables, LAMBDA, 3)
    for t, packet in enumerate(packets):
        scales = np.maximum(tables.base_scales.astype(int) - int(points[t]), 0)
        symbols = calibrated.SYMBOLS[levels[t].abs().numpy()]
        rate = tables.rates[int(classes[t]), scales, quantizers[t].numpy(), symbols].sum() / 1024
        assert rate <= 8 * len(packet) <= rate * 1.001 + 64


def test_golden_bytes():
    tables = Tables(
        frequencies=np.tile(np.array([2400, 800, 400, 200] + [16] * 18 + [4] * 2, np.uint16), 512)
        .reshape(4, 64, 2, 24)
        .copy(),
        centroids=np.repeat(calibrated.NOMINAL[None], 64, 0),
        class_thresholds=np.array([40, 80, 160], np.int64),
        base_scales=np.array([40, 36, 30, 24, 20, 16, 12, 8], np.uint8),
    )
    y64 = torch.tensor([[7000, -3000, 700, -300, 100, 0, -200, 20]], dtype=torch.int32)
    points = torch.tensor([9], dtype=torch.uint8)
    payloads = torch.tensor([0x12345], dtype=torch.int32)
    packets, rows = calibrated.encode(y64, points, payloads, tables, LAMBDA, 3)
    assert packets[0].hex() == "6901b77f030016e6fdeb1596"
    assert lists(calibrated.decode(packets, tables, 3)) == lists((rows, points, payloads))


def test_lanes_by_hidden_size():
    lanes = {1: 1, 576: 1, 2047: 1, 2048: 4, 3584: 4, 4096: 8, 5120: 8, 8192: 16, 16384: 32}
    tables = tables_with(1)
    for hidden_size, num_lanes in lanes.items():
        sized = Tables(
            tables.frequencies,
            tables.centroids,
            tables.class_thresholds,
            np.zeros(hidden_size, np.uint8),
        )
        assert sized.num_lanes == num_lanes


@pytest.mark.parametrize(
    "change",
    [
        {"frequencies": np.full((4, 64, 2, 24), 170, np.uint16)},
        {"frequencies": np.zeros((4, 64, 2, 24), np.int64)},
        {"centroids": np.full((64, 2, 12), 1, np.int32)},
        {"centroids": np.zeros((64, 2, 12), np.int32)},
        {"class_thresholds": np.array([3, 2, 1], np.int64)},
        {"class_thresholds": np.array([3, 2], np.int64)},
        {"base_scales": np.array([64], np.uint8)},
        {"base_scales": np.array([], np.uint8)},
        {"base_scales": np.zeros(16385, np.uint8)},
        {"base_scales": np.zeros((2, 2), np.uint8)},
    ],
)
def test_bad_tables_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(tables_with(8), **change)


def test_settings_out_of_range_are_refused():
    tables = tables_with(8)
    rows = rows_for(tables, 1)
    with pytest.raises(ValueError, match="lambda_"):
        calibrated.encode(*rows, tables, calibrated.MAX_LAMBDA + 1, 3)
    with pytest.raises(ValueError, match="payload"):
        calibrated.encode(*rows, tables, LAMBDA, 1)
    with pytest.raises(ValueError, match="y64 is"):
        calibrated.encode(rows[0].long(), *rows[1:], tables, LAMBDA, 3)
    with pytest.raises(ValueError, match=r"\(1, 7\), expected .*\(1, 8\)"):
        calibrated.encode(rows[0][:, :7], *rows[1:], tables, LAMBDA, 3)
    with pytest.raises(ValueError, match=r"\(1, 8\), expected .*\(2, 8\)"):
        calibrated.quantize(rows[0], rows[1].repeat(2), tables, LAMBDA)


@pytest.mark.parametrize(
    ("argument", "value"), [(0, 2**19 + 1), (0, -(2**31)), (1, 32), (2, 2**24), (2, -1)]
)
def test_names_the_row_that_cannot_be_encoded(backend, argument, value):
    tables = tables_with(4)
    rows = rows_for(tables, 4)
    rows[argument][2] = value
    on_device = [each.to(backend.device) for each in rows]
    for encode, arguments in (
        (reference.encode, rows),
        (backend.load("calibrated").encode, on_device),
    ):
        with pytest.raises(CalibratedError) as caught:
            encode(*arguments, tables, LAMBDA, 3)
        assert caught.value.index == 2


def test_a_row_of_a_batch_is_the_row_alone():
    tables = tables_with(64, 2)
    y64, points, payloads = rows_for(tables, 12)
    packets, rows = calibrated.encode(y64, points, payloads, tables, LAMBDA, 3)
    for t, packet in enumerate(packets):
        own = slice(t, t + 1)
        alone, row = calibrated.encode(y64[own], points[own], payloads[own], tables, LAMBDA, 3)
        assert alone == [packet] and torch.equal(row[0], rows[t])
        assert torch.equal(calibrated.decode([packet], tables, 3)[0][0], rows[t])


def test_no_rows(backend):
    tables = tables_with(8)
    y64, points, payloads = (each[:0].to(backend.device) for each in rows_for(tables, 1))
    operation = backend.load("calibrated")
    packets, rows = operation.encode(y64, points, payloads, tables, LAMBDA, 3)
    assert packets == [] and rows.shape == (0, 8)
    assert operation.decode([], tables, 3, backend.device)[0].shape == (0, 8)
    assert calibrated.quantize(y64.cpu(), points.cpu(), tables, LAMBDA)[0].shape == (0, 8)


def assert_value_or_refusal(packet, tables, payload_bytes):
    """The reference and the CPU say the same; what is accepted is what an encoder may write."""
    try:
        expected = reference.decode([packet], tables, payload_bytes)
    except CalibratedError as error:
        with pytest.raises(CalibratedError, match=str(error)):
            calibrated.decode([packet], tables, payload_bytes)
        with pytest.raises(CalibratedError):
            calibrated.check([packet], tables, payload_bytes)
        return False
    assert lists(calibrated.decode([packet], tables, payload_bytes)) == lists(expected)
    calibrated.check([packet], tables, payload_bytes)
    return True


@pytest.mark.parametrize("num_lanes", [1, 4])
def test_damaged_packets_are_refused_or_read_alike(num_lanes):
    tables = tables_with(40, num_lanes)
    packets, _ = calibrated.encode(*rows_for(tables, 4), tables, LAMBDA, 3)
    packet = max(packets, key=len)
    for length in range(len(packet)):
        assert not assert_value_or_refusal(packet[:length], tables, 3)
    for more in (b"\0", b"\0\0", b"\xff" * 9):
        assert not assert_value_or_refusal(packet + more, tables, 3)
    for bit in range(0, 8 * len(packet), 3):
        damaged = bytearray(packet)
        damaged[bit // 8] ^= 1 << bit % 8
        assert_value_or_refusal(bytes(damaged), tables, 3)


@given(
    packet=st.binary(max_size=40),
    num_lanes=st.sampled_from([1, 2]),
    payload_bytes=st.sampled_from([0, 2, 3]),
)
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_a_row_or_refused(packet, num_lanes, payload_bytes):
    assert_value_or_refusal(packet, tables_with(7, num_lanes), payload_bytes)


def flipped_until(message, packet, tables):
    """The packet with the first bit flipped for which the reference refuses it so."""
    for bit in range(16, 8 * len(packet)):
        damaged = bytearray(packet)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            reference.decode([bytes(damaged)], tables, 3)
        except CalibratedError as error:
            if message in str(error):
                return bytes(damaged)
    raise AssertionError(f"no single bit makes it {message}")


def test_backend_names_the_packet_that_is_bad(backend):
    tables = tables_with(5, 2)
    packets, _ = calibrated.encode(*rows_for(tables, 4), tables, LAMBDA, 3)
    decode = backend.load("calibrated").decode
    good = packets[2]
    bad = {
        "too short": b"",
        "escaped": bytes([good[0] | calibrated.ESCAPE]) + good[1:],
        "begins in a state": good[:2] + bytes(4) + good[6:],
        "before or after": good[:-2],
        "ends in a state": flipped_until("ends in a state", good, tables),
    }
    for message, packet in bad.items():
        packets[2] = packet
        with pytest.raises(CalibratedError, match=message) as caught:
            decode(packets, tables, 3, backend.device)
        assert caught.value.index == 2


def test_backend_reads_damage_that_nothing_betrays_as_the_reference(backend):
    tables = tables_with(12, 1)
    packets, _ = calibrated.encode(*rows_for(tables, 4), tables, LAMBDA, 3)
    rng = np.random.default_rng(0)
    accepted = []
    for packet in packets * 40:
        damaged = bytearray(packet)
        damaged[rng.integers(len(packet))] ^= 1 << int(rng.integers(8))
        if assert_value_or_refusal(bytes(damaged), tables, 3):
            accepted.append(bytes(damaged))
    assert len(accepted) > 10
    decoded = backend.load("calibrated").decode(accepted, tables, 3, backend.device)
    assert lists(decoded) == lists(reference.decode(accepted, tables, 3))


def test_no_payload_means_none():
    tables = tables_with(24)
    y64, points, payloads = rows_for(tables, 1)
    packets, _ = calibrated.encode(y64, points, payloads & 0xFFFF, tables, LAMBDA, 2)
    calibrated.check(packets, tables, 2)
    with pytest.raises(CalibratedError, match="ends in a state"):
        calibrated.check(packets, tables, 0)
