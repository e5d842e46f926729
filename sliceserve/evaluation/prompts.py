"""Token sequences that share their beginnings, and their rows in a forward pass."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from sliceserve.kernels.paged_attention import AttentionBatch


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens from position 0 on, and continuations that each follow them; any may be empty.

    Its rows are those of ``token_ids``, then those of each branch.
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
    """The rows of one forward pass, over a KV cache whose blocks hold one token each, so that
    branches share the keys of what they follow. ``positions`` and ``slots`` are (T,) int64."""

    positions: torch.Tensor
    slots: torch.Tensor
    attention: AttentionBatch

    @classmethod
    def of_prompts(cls, prompts: Sequence[Prompt], device: torch.device) -> "Layout":
        """All rows of ``prompts``; the slot of a row is its own number."""
        lengths: list[int] = []
        tables: list[list[int]] = []
        first_row = 0
        for prompt in prompts:
            trunk = list(range(len(prompt.token_ids)))
            pieces = [(trunk, len(trunk))]
            if prompt.branches:
                pieces += zip(prompt.sequences(), map(len, prompt.branches), strict=True)
            for sequence, length in pieces:
                if length > 0:
                    lengths.append(length)
                    tables.append([first_row + row for row in sequence])
            first_row += prompt.num_rows
        return cls.of_tables(tables, lengths, device)

    @classmethod
    def of_tables(
        cls, tables: Sequence[Sequence[int]], lengths: Sequence[int], device: torch.device
    ) -> "Layout":
        """The last ``lengths[i]`` tokens of each sequence i, whose tokens have the slots
        ``tables[i]``."""
        contexts = list(map(len, tables))
        padded = np.zeros((len(tables), max(contexts)), dtype=np.int32)
        positions, slots = [], []
        for row, table, length in zip(padded, tables, lengths, strict=True):
            row[: len(table)] = table
            positions.append(np.arange(len(table) - length, len(table)))
            slots.append(np.array(table[len(table) - length :], dtype=np.int64))
        attention = AttentionBatch(
            query_starts=_int32(list(accumulate(lengths, initial=0)), device),
            context_lens=_int32(contexts, device),
            block_tables=torch.from_numpy(padded).to(device),
            max_query_len=max(lengths),
            max_context_len=max(contexts),
        )
        return cls(
            torch.from_numpy(np.concatenate(positions)).to(device),
            torch.from_numpy(np.concatenate(slots)).to(device),
            attention,
        )


def shared(sequences: Sequence[Sequence[int]]) -> Prompt:
    """A prompt with a branch for each sequence, which keeps its last token at least: what they
    have in common at their beginning comes once."""
    first, most = sequences[0], min(map(len, sequences)) - 1
    num_common = 0
    while num_common < most and all(s[num_common] == first[num_common] for s in sequences):
        num_common += 1
    return Prompt(first[:num_common], [s[num_common:] for s in sequences])


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
