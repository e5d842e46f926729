"""Runs of tokens through the calibrated codec on the CPU, in one compiled call."""

from collections.abc import Sequence
from functools import cached_property, partial

import numpy as np
import torch

from sliceserve.codec.apart import is_apart
from sliceserve.codec.base import CodecError, Run
from sliceserve.codec.prediction import Prediction
from sliceserve.codec.quantization import LAMBDA, Quantization
from sliceserve.codec.rate_control import MAX_SHIFT, RateControl
from sliceserve.kernels.calibrated import cpu_runs
from sliceserve.kernels.calibrated.cpu import joined
from sliceserve.kernels.elements import storage_scalar


class CompiledCoder:
    """``WaveCoder`` for CPU tensors, bit for bit, but that ``encode`` has no search for a point:
    not for a ``RateControl`` that ``searches``."""

    def __init__(
        self, prediction: Prediction, quantization: Quantization, rate_control: RateControl
    ) -> None:
        # They own what the profile's addresses point at.
        self._prediction = prediction
        self._quantization = quantization
        self._rate_control = rate_control
        tables = quantization.tables
        embeddings = prediction.embeddings
        self._embedding_like = storage_scalar(
            torch.float32 if embeddings is None else embeddings.dtype
        )
        self._max_packet_bytes = tables.max_packet_bytes(quantization.payload_bytes)
        self._decoder_tables = (
            quantization.payload_bytes,
            tables.starts,
            tables.centroids,
            tables.base_scales,
            tables.num_lanes,
        )
        self._encoder_tables = (
            quantization.payload_bytes,
            tables.starts,
            tables.rates,
            tables.centroids,
            tables.class_thresholds,
            tables.base_scales,
            tables.num_lanes,
            LAMBDA,
        )

    def encode(self, x: torch.Tensor, token_ids: list[int], runs: Sequence[Run]) -> list[bytes]:
        num_rows, size = x.shape[0], self._max_packet_bytes
        packets = np.empty((num_rows, size), np.uint8)
        begins = np.empty(num_rows, np.int64)
        states = np.empty(x.shape, np.float32)
        bad = cpu_runs.encode_runs(
            self._encoder_profile,
            self._embedding_like,
            x.data_ptr(),
            np.array(token_ids, np.int64),
            *self._lengths_and_previous(runs, num_rows),
            *self._encoder_tables,
            packets,
            begins,
            states,
        )
        if bad >= 0:
            raise CodecError("a value is not finite", bad)
        # Each packet is at the end of its row.
        data = packets.tobytes()
        cut = [data[i * size + first : (i + 1) * size] for i, first in enumerate(begins.tolist())]
        self._follow(runs, states, [not packet for packet in cut])
        return cut

    def decode(self, packets: Sequence[bytes], out: torch.Tensor, runs: Sequence[Run]) -> None:
        is_plain = out.dtype == torch.float32 and out.is_contiguous()
        rows = out if is_plain else torch.empty(out.shape)
        states = np.empty(out.shape, np.float32)
        data, starts = joined(packets)
        bad = cpu_runs.decode_runs(
            self._decoder_profile,
            self._embedding_like,
            data,
            starts,
            *self._lengths_and_previous(runs, len(packets)),
            *self._decoder_tables,
            states,
            rows.data_ptr(),
        )
        if bad >= 0:
            raise CodecError("no encoder wrote it, or its state is not finite", bad)
        if not is_plain:
            out.copy_(rows)
        self._follow(runs, states, [is_apart(packet) for packet in packets])

    @cached_property
    def _decoder_profile(self) -> np.ndarray:
        prediction, quantization = self._prediction, self._quantization
        profile = np.zeros(1, cpu_runs.PROFILE)
        for name, tensor in {
            "mean": prediction.mean,
            "offset": prediction.offset,
            "token_weight": prediction.token_weight,
            "token_rows": prediction.token_rows,
            "token_places": prediction.token_places,
            "embeddings": prediction.embeddings,
            "state_weight": prediction.state_weight,
            "basis": quantization.basis,
            "from_units": quantization.from_units,
            "stretches": quantization.stretches,
        }.items():
            profile[name] = 0 if tensor is None else tensor.data_ptr()
        profile["is_diagonal"] = quantization.basis.dim() == 1
        profile["vocab_size"] = prediction.vocab_size
        return profile

    @cached_property
    def _encoder_profile(self) -> np.ndarray:
        rate_control = self._rate_control
        profile: np.ndarray = self._decoder_profile.copy()
        for name, tensor in {
            "inverse": self._quantization.inverse,
            "to_units": self._quantization.to_units,
            "reach": self._quantization.reach,
            "direction": rate_control.direction,
        }.items():
            profile[name] = tensor.data_ptr()
        profile["base"] = rate_control.base
        profile["shift"] = rate_control.shift
        profile["max_shift"] = MAX_SHIFT
        profile["largest_energy"] = rate_control.largest_energy
        return profile

    def _lengths_and_previous(
        self, runs: Sequence[Run], num_rows: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the kernels call ``run_lengths`` and ``p_previous``."""
        if not self._prediction.follows_states:
            return np.array([num_rows], np.int64), np.zeros(1, np.int64)
        lengths = [run.num_rows for run in runs]
        previous = [self._address(run.previous) for run in runs]
        return np.array(lengths, np.int64), np.array(previous, np.int64)

    def _address(self, state: torch.Tensor | None) -> int:
        if state is None:
            return 0
        mean = self._prediction.mean
        is_like = state.shape == mean.shape and state.dtype == mean.dtype and state.is_cpu
        if not is_like or not state.is_contiguous():
            raise ValueError(
                f"the state before a run must be {tuple(mean.shape)} of {mean.dtype}, contiguous "
                f"and on the CPU, got {tuple(state.shape)} of {state.dtype} on {state.device}"
            )
        return state.data_ptr()

    def _follow(self, runs: Sequence[Run], states: np.ndarray, is_apart: Sequence[bool]) -> None:
        if not self._prediction.follows_states:
            return

        def state_of(first: int, i: int) -> torch.Tensor | None:
            # Copied by NumPy: a PyTorch operation that comes alone, behind all that the kernel has
            # pushed out of the caches, takes as long as a third of the kernel.
            return None if is_apart[first + i] else torch.from_numpy(states[first + i].copy())

        first = 0
        for run in runs:
            run.follow(run.num_rows, partial(state_of, first))
            first += run.num_rows
