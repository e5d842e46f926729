"""A step plan as tensors.

Rows are in the plan's order, lowest entry layer first, so at every layer the active rows are a
prefix of the batch. A *stage* is a run of layers between which neither that prefix nor the segment
changes; the forward pass is a loop over stages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from sliceserve.kernels.paged_attention import AttentionBatch
from sliceserve.scheduler.blocks import Segment


class Rows(Protocol):
    """What the layers must know of a ``ScheduledRequest``, whose fields these are."""

    @property
    def entry_layer(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def block_tables(self) -> list[list[int]]: ...


@dataclass(frozen=True, slots=True)
class Stage:
    """Layers ``[first, stop)`` over the first ``num_rows`` rows; ``slots`` (num_rows,) int64."""

    first: int
    stop: int
    num_rows: int
    slots: torch.Tensor
    attention: AttentionBatch


class Batch:
    """The tensors of one forward pass, on ``device``."""

    def __init__(
        self,
        requests: Sequence[Rows],
        segments: list[Segment],
        block_size: int,
        device: torch.device,
    ) -> None:
        self._requests = requests
        self._segments = segments
        self._block_size = block_size
        self._device = device
        self._lengths = np.array([r.num_tokens for r in requests], dtype=np.int32)
        self._row_starts = np.zeros(len(requests) + 1, dtype=np.int32)  # (B + 1,)
        np.cumsum(self._lengths, out=self._row_starts[1:])
        starts = np.array([r.start for r in requests], dtype=np.int64)
        self._row_request = np.repeat(np.arange(len(requests)), self._lengths)  # (T,)
        offsets = np.arange(self.num_rows) - self._row_starts[self._row_request]
        self._positions = starts[self._row_request] + offsets  # (T,)
        self._context_lens = (starts + self._lengths).astype(np.int32)  # (B,)

    @property
    def num_rows(self) -> int:
        return int(self._row_starts[-1])

    @cached_property
    def positions(self) -> torch.Tensor:
        """(T,) int64."""
        return self._to_device(self._positions)

    @cached_property
    def last_rows(self) -> list[int]:
        """The last row of each request."""
        return (self._row_starts[1:] - 1).tolist()

    @property
    def row_starts(self) -> list[int]:
        """The first row of each request, and the number of rows."""
        return self._row_starts.tolist()

    def stages(self) -> list[Stage]:
        """The pass from the lowest entry layer to the top."""
        entries = [r.entry_layer for r in self._requests]
        starts = sorted({*entries, *(s.first for s in self._segments)})
        stages = []
        for i, segment in enumerate(self._segments):
            inside = [layer for layer in starts if segment.first <= layer < segment.stop]
            num_in_segment = sum(entry < segment.stop for entry in entries)
            if num_in_segment == 0:
                continue
            tables, slots = self._segment_tables(i, num_in_segment)
            for first, stop in zip(inside, [*inside[1:], segment.stop], strict=True):
                num_requests = sum(entry <= first for entry in entries)
                if num_requests > 0:
                    stages.append(self._stage(first, stop, num_requests, tables, slots))
        return stages

    def _segment_tables(self, i: int, num_requests: int) -> tuple[np.ndarray, torch.Tensor]:
        """Block tables (num_requests, max_blocks) int32 and slots (num_rows,) int64 of segment i,
        for the requests that hold blocks in it."""
        used = -(-self._context_lens[:num_requests] // self._block_size)
        tables = np.zeros((num_requests, int(used.max())), dtype=np.int32)
        for row, (request, n) in enumerate(
            zip(self._requests[:num_requests], used.tolist(), strict=True)
        ):
            tables[row, :n] = request.block_tables[i][:n]
        num_rows = self._row_starts[num_requests]
        positions = self._positions[:num_rows]
        blocks = tables[self._row_request[:num_rows], positions // self._block_size]
        slots = blocks.astype(np.int64) * self._block_size + positions % self._block_size
        return tables, self._to_device(slots)

    def _stage(
        self, first: int, stop: int, num_requests: int, tables: np.ndarray, slots: torch.Tensor
    ) -> Stage:
        num_rows = int(self._row_starts[num_requests])
        attention = AttentionBatch(
            query_starts=self._to_device(self._row_starts[: num_requests + 1]),
            context_lens=self._to_device(self._context_lens[:num_requests]),
            block_tables=self._to_device(tables[:num_requests]),
            max_query_len=int(self._lengths[:num_requests].max()),
            max_context_len=int(self._context_lens[:num_requests].max()),
        )
        return Stage(first, stop, num_rows, slots[:num_rows], attention)

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)
