from pathlib import Path

import pytest
import torch

from sliceserve.kernels.paged_attention import AttentionBatch
from sliceserve.models.decoder import Decoder
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

    def __init__(self, decoders: list[Decoder], max_tokens: int) -> None:
        spec = decoders[0].spec
        num_blocks = -(-max_tokens // BLOCK_SIZE)
        shape = (num_blocks, BLOCK_SIZE, spec.num_kv_heads, spec.head_dim)
        self.decoders = decoders
        # A read of a slot that was never written shows in the result.
        self.caches = {
            layer: (torch.full(shape, torch.nan), torch.full(shape, torch.nan))
            for decoder in decoders
            for layer in range(decoder.first, decoder.stop)
        }
        # Neighbouring positions lie in blocks far apart.
        self.block_table = torch.arange(num_blocks).flip(0)
        self.num_computed = 0

    @torch.inference_mode()
    def run(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Logits (T, vocab) of the next tokens of the sequence."""
        first, *_, last = [*self.decoders, self.decoders[-1]]
        hidden = first.embed(token_ids)
        self.run_layers(hidden, [(d, d.first, d.stop) for d in self.decoders])
        return last.logits(hidden)

    @torch.inference_mode()
    def run_layers(self, hidden: torch.Tensor, parts: list[tuple[Decoder, int, int]]) -> None:
        start, stop = self.num_computed, self.num_computed + len(hidden)
        positions = torch.arange(start, stop)
        slots = self.block_table[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
        batch = AttentionBatch(
            query_starts=torch.tensor([0, len(hidden)], dtype=torch.int32),
            context_lens=torch.tensor([stop], dtype=torch.int32),
            block_tables=self.block_table.int().unsqueeze(0),
            max_query_len=len(hidden),
            max_context_len=stop,
        )
        for decoder, first, last in parts:
            decoder.forward(hidden, first, last, positions, slots, self.caches, batch)
        self.num_computed = stop


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
