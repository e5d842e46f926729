"""SLICER's idea carried to its end: a learned basis, a trellis of dead zones, entropy-coded bins.

A profile says where a model's hidden states lie: ``prediction`` foretells a token's, and
``quantization`` turns the rest into bytes, at the step that ``rate_control`` chooses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sliceserve.codec.base import CodecError, Run
from sliceserve.codec.int8 import Int8Codec
from sliceserve.codec.prediction import Embed, Prediction, waves
from sliceserve.codec.profile import Profile
from sliceserve.codec.quantization import Quantization
from sliceserve.codec.rate_control import RateControl
from sliceserve.codec.rows import codec_errors, expect_one_row_each, expect_rows, refuse_not_finite
from sliceserve.configs import CalibratedConfig
from sliceserve.kernels.calibrated import ESCAPE, CalibratedError

WIRE_ID = "calibrated/1"

# The first byte of a packet that is sent apart.
_APART = bytes((ESCAPE,))
_TOKEN_BYTES = 3


class CalibratedCodec:
    """The codec of one profile; ``config`` steers the encoder alone.

    A packet is the kernel's, with the token id as its payload if the profile predicts. A token that
    no step suits is sent apart: ``ESCAPE``, the token id in three bytes if the profile predicts,
    and a packet of ``Int8Codec``. The token behind it is predicted as if it were the first.

    ``embed`` is needed by profiles that predict.
    """

    def __init__(
        self, config: CalibratedConfig, profile: Profile, embed: Embed | None = None
    ) -> None:
        if profile.predictor != "none" and embed is None:
            raise ValueError(f"a profile with predictor {profile.predictor!r} needs embeddings")
        self.profile = profile
        self._config = config
        self._embed = embed if self.predicts else None
        self._apart = Int8Codec(profile.hidden_size)
        self._payload_bytes = 0 if not self.predicts else 2 if profile.vocab_size <= 1 << 16 else 3
        self._sides: dict[torch.device, _Side] = {}

    @property
    def wire_id(self) -> str:
        return WIRE_ID

    @property
    def predicts(self) -> bool:
        return self.profile.predictor != "none"

    @property
    def hidden_size(self) -> int:
        return self.profile.hidden_size

    def encode(self, hidden: torch.Tensor, runs: Sequence[Run] = ()) -> list[bytes]:
        expect_rows(hidden, self.hidden_size)
        x = hidden.float().contiguous()
        refuse_not_finite(x, "a value is not finite")
        side = self._side(x.device)
        token_ids = self._token_ids(runs, len(x))
        known = side.prediction.from_tokens(token_ids)
        if not side.prediction.follows_states:
            return self._encode_rows(side, x, known, token_ids)[0]
        packets = [b""] * len(x)
        for rows, current in waves(runs):
            previous = side.prediction.previous_of(current)
            predicted = known[rows] + side.prediction.from_states(previous)
            written, units, points = self._encode_rows(side, x[rows], predicted, token_ids[rows])
            decoded = predicted + side.quantization.residual(units, points)
            for row, run, packet, state in zip(rows, current, written, decoded, strict=True):
                packets[row] = packet
                run.follow(None if _is_apart(packet) else state)
        return packets

    def decode(self, packets: Sequence[bytes], out: torch.Tensor, runs: Sequence[Run] = ()) -> None:
        expect_one_row_each(packets, out, self.hidden_size)
        try:
            states = self._decoded(packets, runs, out.device)
        except CodecError:
            # Usual packets are read before those apart: another may be the first bad one.
            for i, packet in enumerate(packets):
                self._check(packet, i)
            raise
        refuse_not_finite(states, "the decoded state is not finite")
        out.copy_(states)

    def check(self, packet: bytes) -> None:
        self._check(packet, 0)

    def _encode_rows(
        self, side: "_Side", x: torch.Tensor, predicted: torch.Tensor, token_ids: torch.Tensor
    ) -> tuple[list[bytes], torch.Tensor, torch.Tensor]:
        """Tokens (n, d), their prediction and ids → packets, and what a decoder sees where a packet
        is not apart: the arguments of ``Quantization.residual``."""
        components = side.quantization.components(x - predicted)
        points = side.rate_control.points(x, predicted, components, token_ids)
        if apart := [i for i, point in enumerate(points.tolist()) if point < 0]:
            components[apart] = 0
            points = points.clamp(min=0)
        points = points.to(x.device)
        packets, units = side.quantization.write(components, points, token_ids)
        for i in apart:
            token = int(token_ids[i]).to_bytes(_TOKEN_BYTES, "little") if self.predicts else b""
            packets[i] = _APART + token + self._apart.encode(x[i : i + 1])[0]
        return packets, units, points

    def _decoded(
        self, packets: Sequence[bytes], runs: Sequence[Run], device: torch.device
    ) -> torch.Tensor:
        """Packets → states (n, d) float32. Raises CodecError without a place in the batch."""
        side = self._side(device)
        residual, points, token_ids = self._read(side, packets)
        known = side.prediction.from_tokens(token_ids)
        if not side.prediction.follows_states:
            states = known + residual
        else:
            states = torch.empty_like(residual)
            _expect_whole(runs, len(packets))
            for rows, current in waves(runs):
                previous = side.prediction.previous_of(current)
                # In the order of the encoder's sums.
                decoded = known[rows] + side.prediction.from_states(previous) + residual[rows]
                states[rows] = decoded
                for row, run, state in zip(rows, current, decoded, strict=True):
                    run.follow(None if _is_apart(packets[row]) else state)
        states = side.quantization.restored(states, points)
        for i, packet in enumerate(packets):
            if _is_apart(packet):
                self._apart.decode([self._vector(packet)], states[i : i + 1])
        return states

    def _read(
        self, side: "_Side", packets: Sequence[bytes]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Residuals (n, d) and points (n,) int64, 0 for packets apart, and token ids (n,) int64 on
        the CPU."""
        usual = [i for i, packet in enumerate(packets) if not _is_apart(packet)]
        with codec_errors(CalibratedError):
            residual, points, token_ids = side.quantization.read([packets[i] for i in usual])
        if len(usual) < len(packets):
            all_residuals = residual.new_zeros(len(packets), self.hidden_size)
            all_residuals[usual] = residual
            all_points = points.new_zeros(len(packets))
            all_points[usual] = points
            all_ids = torch.zeros(len(packets), dtype=torch.int64)
            all_ids[usual] = token_ids
            for i in set(range(len(packets))).difference(usual):
                all_ids[i] = self._token_apart(packets[i])
            residual, points, token_ids = all_residuals, all_points, all_ids
        if self.predicts:
            self._refuse_tokens(token_ids)
        return residual, points, token_ids

    def _check(self, packet: bytes, index: int) -> None:
        try:
            if _is_apart(packet):
                self._apart.check(self._vector(packet))
                token_id = self._token_apart(packet)
            else:
                with codec_errors(CalibratedError):
                    token_id = self._side(torch.device("cpu")).quantization.check(packet)
            self._refuse_tokens(torch.tensor([token_id]))
        except CodecError as error:
            raise CodecError(str(error), index) from error

    def _token_apart(self, packet: bytes) -> int:
        return int.from_bytes(packet[1 : 1 + _TOKEN_BYTES], "little") if self.predicts else 0

    def _vector(self, packet: bytes) -> bytes:
        return packet[1 + (_TOKEN_BYTES if self.predicts else 0) :]

    def _refuse_tokens(self, token_ids: torch.Tensor) -> None:
        if len(token_ids) and (largest := int(token_ids.max())) >= self.profile.vocab_size:
            raise CodecError(
                f"token id {largest} is not below {self.profile.vocab_size}, the vocabulary"
            )

    def _token_ids(self, runs: Sequence[Run], num_rows: int) -> torch.Tensor:
        if not self.predicts:
            return torch.zeros(num_rows, dtype=torch.int64)
        _expect_whole(runs, num_rows)
        token_ids = torch.tensor([i for run in runs for i in run.token_ids], dtype=torch.int64)
        if len(token_ids) != num_rows:
            raise ValueError(f"{len(token_ids)} token ids do not fit {num_rows} rows")
        return token_ids

    def _side(self, device: torch.device) -> "_Side":
        if device not in self._sides:
            profile = self.profile
            quantization = Quantization(profile, self._payload_bytes, device)
            self._sides[device] = _Side(
                Prediction(profile, self._embed, device),
                quantization,
                RateControl(self._config, profile, quantization, device),
            )
        return self._sides[device]


@dataclass(frozen=True, slots=True)
class _Side:
    """The profile on one device."""

    prediction: Prediction
    quantization: Quantization
    rate_control: RateControl


def _is_apart(packet: bytes) -> bool:
    return packet[:1] == _APART


def _expect_whole(runs: Sequence[Run], num_rows: int) -> None:
    if (total := sum(run.num_rows for run in runs)) != num_rows:
        raise ValueError(f"runs of {total} rows do not fit {num_rows} rows of hidden states")
