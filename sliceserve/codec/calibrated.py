"""SLICER's idea carried to its end: a learned basis, a trellis of dead zones, entropy-coded bins.

A profile says where a model's hidden states lie: ``prediction`` foretells a token's, and
``quantization`` turns the rest into bytes, at the step that ``rate_control`` chooses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sliceserve.codec.apart import Apart, is_apart
from sliceserve.codec.base import CodecError, Run
from sliceserve.codec.compiled import CompiledCoder
from sliceserve.codec.prediction import Prediction
from sliceserve.codec.profile import Profile
from sliceserve.codec.quantization import Quantization
from sliceserve.codec.rate_control import RateControl
from sliceserve.codec.rows import codec_errors, expect_one_row_each, expect_rows
from sliceserve.codec.waves import WaveCoder
from sliceserve.configs import CalibratedConfig
from sliceserve.kernels.calibrated import CalibratedError

WIRE_ID = "calibrated/1"


class CalibratedCodec:
    """The codec of one profile; ``config`` steers the encoder alone.

    A packet is the kernel's, with the token id as its payload if the profile predicts, or
    ``Apart``'s if no step suits the token. The token behind that one is predicted as if it were
    the first.

    ``embeddings`` (vocab_size, hidden_size), the model's as stored and on the CPU, is needed by
    profiles that predict.
    """

    def __init__(
        self, config: CalibratedConfig, profile: Profile, embeddings: torch.Tensor | None = None
    ) -> None:
        if profile.predictor != "none":
            _expect_embeddings(profile, embeddings)
        self.profile = profile
        self._config = config
        self._embeddings = embeddings
        self._apart = Apart(profile.hidden_size, self.predicts)
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
        token_ids = self._token_ids(runs, x.shape[0])
        packets = self._side(x.device).encoder.encode(x, token_ids, runs)
        for i, packet in enumerate(packets):
            if not packet:
                packets[i] = self._apart.encode(x[i : i + 1], token_ids[i])
        return packets

    def decode(self, packets: Sequence[bytes], out: torch.Tensor, runs: Sequence[Run] = ()) -> None:
        expect_one_row_each(packets, out, self.hidden_size)
        side = self._side(out.device)
        if side.prediction.follows_states:
            _expect_whole(runs, len(packets))
        try:
            side.decoder.decode(packets, out, runs)
            for i, packet in enumerate(packets):
                if is_apart(packet):
                    self._apart.decode(packet, out[i : i + 1])
                    side.prediction.refuse_unknown(torch.tensor([self._apart.token_id(packet)]))
        except CodecError:
            # Usual packets are read before those apart: another may be the first bad one.
            for i, packet in enumerate(packets):
                self._check(packet, i)
            raise

    def check(self, packet: bytes) -> None:
        self._check(packet, 0)

    def _check(self, packet: bytes, index: int) -> None:
        side = self._side(torch.device("cpu"))
        try:
            if is_apart(packet):
                self._apart.check(packet)
                token_id = self._apart.token_id(packet)
            else:
                with codec_errors(CalibratedError):
                    token_id = side.quantization.check(packet)
            side.prediction.refuse_unknown(torch.tensor([token_id]))
        except CodecError as error:
            raise CodecError(str(error), index) from error

    def _token_ids(self, runs: Sequence[Run], num_rows: int) -> list[int]:
        if not self.predicts:
            return [0] * num_rows
        _expect_whole(runs, num_rows)
        token_ids = [i for run in runs for i in run.token_ids]
        if len(token_ids) != num_rows:
            raise ValueError(f"{len(token_ids)} token ids do not fit {num_rows} rows")
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < self.profile.vocab_size:
            raise ValueError(f"token ids must be below {self.profile.vocab_size}, the vocabulary")
        return token_ids

    def _side(self, device: torch.device) -> "_Side":
        if device not in self._sides:
            self._sides[device] = self._make_side(device)
        return self._sides[device]

    def _make_side(self, device: torch.device) -> "_Side":
        profile = self.profile
        prediction = Prediction(profile, self._embeddings, device)
        quantization = Quantization(profile, self._payload_bytes, device)
        rate_control = RateControl(self._config, profile, quantization, device)
        waves = WaveCoder(prediction, quantization, rate_control)
        if device.type != "cpu":
            return _Side(prediction, quantization, waves, waves)
        compiled = CompiledCoder(prediction, quantization, rate_control)
        encoder = waves if rate_control.searches else compiled
        return _Side(prediction, quantization, encoder, compiled)


@dataclass(frozen=True, slots=True)
class _Side:
    """The profile on one device."""

    prediction: Prediction
    quantization: Quantization
    encoder: WaveCoder | CompiledCoder
    decoder: WaveCoder | CompiledCoder


def _expect_embeddings(profile: Profile, embeddings: torch.Tensor | None) -> None:
    if embeddings is None:
        raise ValueError(f"a profile with predictor {profile.predictor!r} needs embeddings")
    expected = (profile.vocab_size, profile.hidden_size)
    if tuple(embeddings.shape) != expected:
        raise ValueError(f"embeddings have shape {tuple(embeddings.shape)}, expected {expected}")


def _expect_whole(runs: Sequence[Run], num_rows: int) -> None:
    if (total := sum(run.num_rows for run in runs)) != num_rows:
        raise ValueError(f"runs of {total} rows do not fit {num_rows} rows of hidden states")
