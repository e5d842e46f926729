"""Token sequences that share their beginnings, and their rows in a forward pass."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from sliceserve.kernels.paged_attention import AttentionBatch


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens from position 0 on, and continuations that each follow them.

    Its rows are those of ``token_ids``, then those of each branch. A branch may be empty.
    """

    token_ids: Sequence[int]
    branches: Sequence[Sequence[int]] = ()

    @property
    def num_rows(self) -> int:
        return len(self.token_ids) + sum(map(len, self.branches))

    @property
    def rows(self) -> list[int]:
        """The token of each row."""
        return [*self.token_ids, *(i for branch in self.branches for i in branch)]

    def sequences(self) -> Iterator[list[int]]:
        """The rows of each whole sequence: of every branch with what it follows, or of the tokens
        alone where there is no branch."""
        trunk = list(range(len(self.token_ids)))
        ends = list(accumulate(map(len, self.branches), initial=len(trunk)))
        for branch, start in zip(self.branches, ends, strict=False):
            yield trunk + list(range(start, start + len(branch)))
        if not self.branches:
            yield trunk


@dataclass(frozen=True, slots=True)
class Layout:
    """Prompts as one forward pass. Blocks hold one token, and a row's block is its own number, so
    that branches share the keys of what they follow; ``positions`` (T,) int64."""

    positions: torch.Tensor
    attention: AttentionBatch

    @classmethod
    def of(cls, prompts: Sequence[Prompt], device: torch.device) -> "Layout":
        lengths: list[int] = []
        tables: list[list[int]] = []
        first_row = 0
        for prompt in prompts:
            pieces = [prompt.token_ids, *prompt.branches]
            sequences = [list(range(len(prompt.token_ids)))]
            sequences += prompt.sequences() if prompt.branches else ()
            for piece, sequence in zip(pieces, sequences, strict=True):
                if piece:
                    lengths.append(len(piece))
                    tables.append([first_row + row for row in sequence])
            first_row += prompt.num_rows
        contexts = list(map(len, tables))
        padded = np.zeros((len(tables), max(contexts)), dtype=np.int32)
        for row, table in zip(padded, tables, strict=True):
            row[: len(table)] = table
        positions = [
            np.arange(context - length, context)
            for context, length in zip(contexts, lengths, strict=True)
        ]
        attention = AttentionBatch(
            query_starts=_int32(list(accumulate(lengths, initial=0)), device),
            context_lens=_int32(contexts, device),
            block_tables=torch.from_numpy(padded).to(device),
            max_query_len=max(lengths),
            max_context_len=max(contexts),
        )
        return cls(torch.from_numpy(np.concatenate(positions)).to(device), attention)


def grouped(prompts: Sequence[Prompt], max_rows: int) -> Iterator[tuple[slice, list[Prompt]]]:
    """Prompts in order, as many at a time as have ``max_rows`` rows together, one at least; and
    where their rows lie among those of all prompts."""
    start = stop = 0
    group: list[Prompt] = []
    for prompt in prompts:
        if group and stop - start + prompt.num_rows > max_rows:
            yield slice(start, stop), group
            start, group = stop, []
        group.append(prompt)
        stop += prompt.num_rows
    if group:
        yield slice(start, stop), group


def _int32(values: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)
