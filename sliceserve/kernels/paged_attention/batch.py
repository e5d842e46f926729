"""Which rows attend to which cached keys."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """B sequences of consecutive rows, each with a context in the paged cache.

    query_starts: (B + 1,) int32; rows ``[query_starts[i], query_starts[i + 1])`` are sequence i's.
    context_lens: (B,) int32; keys that the sequence's last row sees, its own included. Row r of n
    sees the first ``context_len - n + r + 1`` keys.
    block_tables: (B, max_blocks) int32; ids of the blocks that hold the context, in order. Entries
    past the context are never read.
    max_query_len, max_context_len: bounds on rows and keys of one sequence, known to the host so
    that a launch needs no synchronisation.
    """

    query_starts: torch.Tensor
    context_lens: torch.Tensor
    block_tables: torch.Tensor
    max_query_len: int
    max_context_len: int
