"""Runs of tokens through the calibrated codec with tensors: on any device, for any aim."""

from collections.abc import Iterator, Sequence

import torch

from sliceserve.codec.apart import is_apart
from sliceserve.codec.base import Run
from sliceserve.codec.prediction import Prediction
from sliceserve.codec.quantization import Quantization
from sliceserve.codec.rate_control import RateControl
from sliceserve.codec.rows import codec_errors, refuse_not_finite
from sliceserve.kernels.calibrated import CalibratedError


class WaveCoder:
    """The first rows of all runs in one go, then the second, and so on, where each row is predicted
    from the one before it; all rows in one go where none is.

    Packets of tokens that no step suits are empty, and the codec's to write and to read.
    """

    def __init__(
        self, prediction: Prediction, quantization: Quantization, rate_control: RateControl
    ) -> None:
        self._prediction = prediction
        self._quantization = quantization
        self._rate_control = rate_control

    def encode(self, x: torch.Tensor, token_ids: list[int], runs: Sequence[Run]) -> list[bytes]:
        """Tokens x (T, d) float32 and their ids → a packet each, empty for one that is to be sent
        apart. Raises CodecError."""
        refuse_not_finite(x, "a value is not finite")
        ids = torch.tensor(token_ids, dtype=torch.int64)
        known = self._prediction.from_tokens(ids)
        if not self._prediction.follows_states:
            return self._encode_rows(x, known, ids)[0]
        packets = [b""] * len(x)
        for rows, current in waves(runs):
            previous = self._prediction.previous_of(current)
            predicted = known[rows] + self._prediction.from_states(previous)
            written, units, points = self._encode_rows(x[rows], predicted, ids[rows])
            decoded = predicted + self._quantization.residual(units, points)
            for row, run, packet, state in zip(rows, current, written, decoded, strict=True):
                packets[row] = packet
                _follow(run, state if packet else None)
        return packets

    def decode(self, packets: Sequence[bytes], out: torch.Tensor, runs: Sequence[Run]) -> None:
        """Write packets to ``out`` (T, d), but those apart, whose rows are then undefined. Raises
        CodecError without a place in the batch."""
        residual, points, token_ids = self._read(packets, out.device)
        known = self._prediction.from_tokens(token_ids)
        if not self._prediction.follows_states:
            states = known + residual
        else:
            states = torch.empty_like(residual)
            for rows, current in waves(runs):
                previous = self._prediction.previous_of(current)
                # In the order of the encoder's sums.
                decoded = known[rows] + self._prediction.from_states(previous) + residual[rows]
                states[rows] = decoded
                for row, run, state in zip(rows, current, decoded, strict=True):
                    _follow(run, None if is_apart(packets[row]) else state)
        states = self._quantization.restored(states, points)
        refuse_not_finite(states, "the decoded state is not finite")
        out.copy_(states)

    def _encode_rows(
        self, x: torch.Tensor, predicted: torch.Tensor, token_ids: torch.Tensor
    ) -> tuple[list[bytes], torch.Tensor, torch.Tensor]:
        """Tokens (n, d), their prediction and ids → packets, empty for those apart, and what a
        decoder sees of the others: the arguments of ``Quantization.residual``."""
        components = self._quantization.components(x - predicted)
        points = self._rate_control.points(x, predicted, components, token_ids)
        if apart := [i for i, point in enumerate(points.tolist()) if point < 0]:
            components[apart] = 0
            points = points.clamp(min=0)
        points = points.to(x.device)
        packets, units = self._quantization.write(components, points, token_ids)
        for i in apart:
            packets[i] = b""
        return packets, units, points

    def _read(
        self, packets: Sequence[bytes], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Residuals (n, d), points (n,) int64, and token ids (n,) int64 on the CPU; all zeros for
        packets apart."""
        usual = [i for i, packet in enumerate(packets) if not is_apart(packet)]
        with codec_errors(CalibratedError):
            residual, points, token_ids = self._quantization.read([packets[i] for i in usual])
        self._prediction.refuse_unknown(token_ids)
        if len(usual) == len(packets):
            return residual, points, token_ids
        all_residuals = residual.new_zeros(len(packets), residual.shape[1])
        all_residuals[usual] = residual
        all_points = points.new_zeros(len(packets))
        all_points[usual] = points
        all_ids = torch.zeros(len(packets), dtype=torch.int64)
        all_ids[usual] = token_ids
        return all_residuals, all_points, all_ids


def _follow(run: Run, state: torch.Tensor | None) -> None:
    # Cloned, so that no request keeps the rows of others alive.
    run.follow(1, lambda _: None if state is None else state.clone())


def waves(runs: Sequence[Run]) -> Iterator[tuple[torch.Tensor, list[Run]]]:
    """The first rows of all runs, then the second, and so on: (n,) int64 places in the batch, and
    the run of each. Rows of one wave do not depend on each other."""
    starts = [0]
    for run in runs:
        starts.append(starts[-1] + run.num_rows)
    current = [(start, run) for start, run in zip(starts, runs, strict=False) if run.num_rows]
    depth = 0
    while current:
        yield torch.tensor([start + depth for start, _ in current]), [run for _, run in current]
        depth += 1
        current = [(start, run) for start, run in current if run.num_rows > depth]
