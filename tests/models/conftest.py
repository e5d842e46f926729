from pathlib import Path

import pytest
import torch

from sliceserve.kernels.paged_attention import AttentionBatch
from sliceserve.models.decoder import Decoder
from sliceserve.models.shard import Shard
from sliceserve.models.spec import ModelSpec

BLOCK_SIZE = 4
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory, monkeypatch, request):
    """Tests of the real default model share the user's cache: converting it takes long."""
    if request.node.get_closest_marker("model") is None:
        monkeypatch.setenv("SLICESERVE_CACHE", str(tmp_path_factory.mktemp("cache")))


class Runner:
    """One sequence through one decoder or several, which share the layers between them."""

    def __init__(
        self,
        decoders: list[Decoder],
        max_tokens: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device = CPU,
        shard: Shard | None = None,
    ) -> None:
        spec = (shard or Shard()).local(decoders[0].spec)
        num_blocks = -(-max_tokens // BLOCK_SIZE)
        shape = (num_blocks, BLOCK_SIZE, spec.num_kv_heads, spec.head_dim)
        self.decoders = decoders
        self.device = device
        # A read of a slot that was never written shows in the result.
        unwritten = torch.full(shape, torch.nan, dtype=dtype, device=device)
        self.caches = {
            layer: (unwritten.clone(), unwritten.clone())
            for decoder in decoders
            for layer in range(decoder.first, decoder.stop)
        }
        # Neighbouring positions lie in blocks far apart.
        self.block_table = torch.arange(num_blocks, device=device).flip(0)
        self.num_computed = 0

    @torch.inference_mode()
    def run(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Logits (T, vocab) of the next tokens of the sequence."""
        hidden = self.decoders[0].embed(token_ids)
        self.run_layers(hidden, [(d, d.first, d.stop) for d in self.decoders])
        return self.decoders[-1].logits(hidden)

    @torch.inference_mode()
    def run_layers(self, hidden: torch.Tensor, parts: list[tuple[Decoder, int, int]]) -> None:
        start, stop = self.num_computed, self.num_computed + len(hidden)
        positions = torch.arange(start, stop, device=self.device)
        slots = self.block_table[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
        batch = AttentionBatch(
            query_starts=self._ints(0, len(hidden)),
            context_lens=self._ints(stop),
            block_tables=self.block_table.int().unsqueeze(0),
            max_query_len=len(hidden),
            max_context_len=stop,
        )
        for decoder, first, last in parts:
            decoder.forward(hidden, first, last, positions, slots, self.caches, batch)
        self.num_computed = stop

    def _ints(self, *values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)


@pytest.fixture
def load():
    """Decoder for layers ``[first, stop)`` of a folder, in float32 on the CPU."""

    def load(path: Path, first: int = 0, stop: int | None = None) -> Decoder:
        spec = ModelSpec.load(path)
        stop = spec.num_layers if stop is None else stop
        return Decoder.load(path, spec, first, stop, torch.float32, CPU)

    return load


@pytest.fixture
def runner():
    return Runner
