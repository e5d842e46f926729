"""The layers of one rank, with their KV cache."""

from collections.abc import Sequence
from pathlib import Path

import torch

from sliceserve.configs import EngineConfig
from sliceserve.engine.batch import Batch, Rows
from sliceserve.engine.kv_cache import KVCache, num_blocks_that_fit, plan_segments
from sliceserve.models.decoder import Decoder
from sliceserve.models.shard import Shard
from sliceserve.models.spec import ModelSpec
from sliceserve.scheduler.blocks import Segment


class Layers:
    """A decoder and its cache: what a pass runs through, on every rank alike."""

    def __init__(
        self, decoder: Decoder, cache: KVCache, segments: list[Segment], block_size: int
    ) -> None:
        self.decoder = decoder
        self.cache = cache
        self.segments = segments
        self.block_size = block_size

    @classmethod
    def load(cls, config: EngineConfig, shard: Shard) -> "Layers":
        """The part ``shard`` of the layers that ``config`` names, with as many blocks as every rank
        has room for. ``config`` leaves nothing open: its model is a folder, its dtype, device, last
        layer and cuts are chosen.

        Raises ModelError for weights that do not fit, and ValueError where no memory is left.
        """
        first, stop, cuts = config.layers.first, config.layers.stop, config.layers.cuts
        assert stop is not None and cuts is not None
        path, dtype = Path(config.model.model), getattr(torch, config.model.dtype)
        device = shard.device(config.model.device)
        spec = ModelSpec.load(path)
        decoder = Decoder.load(path, spec, first, stop, dtype, device, shard)
        spec = shard.local(spec)
        num_sharing = shard.size if device.type == "cpu" else 1
        num_blocks = shard.minimum(
            num_blocks_that_fit(config.cache, spec, stop - first, dtype, device, num_sharing)
        )
        segments = [Segment(a, b, num_blocks) for a, b in plan_segments(first, stop, cuts)]
        block_size = config.cache.block_size
        return cls(
            decoder, KVCache(segments, block_size, spec, dtype, device), segments, block_size
        )

    def new_hidden(self, max_rows: int) -> torch.Tensor:
        """A buffer (max_rows, hidden) for the residual stream."""
        shape = (max_rows, self.decoder.spec.hidden_size)
        return torch.zeros(shape, dtype=self.cache.dtype, device=self.cache.device)

    def batch(self, requests: Sequence[Rows]) -> Batch:
        return Batch(requests, self.segments, self.block_size, self.cache.device)

    def forward(self, hidden: torch.Tensor, batch: Batch) -> None:
        """Every row of ``hidden`` (T, hidden), in place, from the layer that it enters to the
        top."""
        for stage in batch.stages():
            self.decoder.forward(
                hidden[: stage.num_rows],
                stage.first,
                stage.stop,
                batch.positions[: stage.num_rows],
                stage.slots,
                self.cache,
                stage.attention,
            )
