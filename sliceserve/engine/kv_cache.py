"""Preallocated keys and values: for each segment of layers one pool of blocks."""

import itertools
import os

import torch

from sliceserve.configs import CacheConfig
from sliceserve.models.spec import ModelSpec
from sliceserve.scheduler.blocks import Segment


def plan_segments(first: int, stop: int, cuts: list[int]) -> list[tuple[int, int]]:
    """Layers ``[first, stop)`` divided at every cut between them."""
    bounds = sorted({first, stop, *(cut for cut in cuts if first < cut < stop)})
    return list(itertools.pairwise(bounds))


def num_blocks_that_fit(
    config: CacheConfig,
    spec: ModelSpec,
    num_layers: int,
    dtype: torch.dtype,
    device: torch.device,
    num_sharing: int = 1,
) -> int:
    """Blocks of each segment's pool: as many as the configuration names or the memory, which
    ``num_sharing`` caches share, allows, and at most enough for 64 sequences of full length.
    Raises ValueError when not one block fits."""
    if config.num_tokens is not None:
        return max(1, config.num_tokens // config.block_size)
    bytes_per_block = (
        2 * num_layers * config.block_size * spec.num_kv_heads * spec.head_dim * dtype.itemsize
    )
    num_bytes = int(_free_memory(device) * config.memory_fraction) // num_sharing
    num_blocks = num_bytes // bytes_per_block
    if num_blocks == 0:
        raise ValueError(
            f"no memory for a KV cache: one block of {config.block_size} tokens takes "
            f"{bytes_per_block} bytes; free some memory or raise cache.memory_fraction"
        )
    return min(num_blocks, 64 * -(-spec.max_position_embeddings // config.block_size))


def _free_memory(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


class KVCache:
    """``cache[i]`` is the pair (keys, values) of global layer i, each (num_blocks, block_size,
    num_kv_heads, head_dim) with num_blocks that of the layer's segment."""

    def __init__(
        self,
        segments: list[Segment],
        block_size: int,
        spec: ModelSpec,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.dtype = dtype
        self.device = device
        self._first = segments[0].first
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        for segment in segments:
            shape = (segment.num_blocks, block_size, spec.num_kv_heads, spec.head_dim)
            for _ in range(segment.first, segment.stop):
                # Not filled: on a CPU the system gives pages only as blocks come into use.
                keys = torch.empty(shape, dtype=dtype, device=device)
                self._layers.append((keys, torch.empty_like(keys)))

    def __getitem__(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._layers[layer - self._first]
