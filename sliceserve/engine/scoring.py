"""Logprobs of tokens that are there already: those of a prompt."""

from collections.abc import Iterator, Sequence

import torch

from sliceserve.scheduler.plan import Logprob, PromptLogprob

# 32 MiB of float32, and about three times that while they are turned into logprobs.
_LOGITS_PER_SLICE = 1 << 23


def slices(rows: list[int], vocab_size: int) -> Iterator[list[int]]:
    """Rows in runs whose logits may be computed at once: memory must not grow with the step."""
    size = max(1, _LOGITS_PER_SLICE // vocab_size)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def score(
    logits: torch.Tensor, targets: Sequence[int], num_top: Sequence[int]
) -> list[PromptLogprob]:
    """How likely ``targets[i]`` was by row i of ``logits`` (n, vocab) float32, and the
    ``num_top[i]`` likeliest tokens there."""
    logprobs = logits.log_softmax(dim=-1)  # (n, vocab)
    column = torch.tensor(targets, device=logits.device)[:, None]
    chosen = logprobs.gather(1, column)  # (n, 1)
    ranks = (logprobs > chosen).sum(dim=-1) + 1
    top = logprobs.topk(max(num_top), dim=-1)
    found = zip(
        targets,
        chosen[:, 0].tolist(),
        ranks.tolist(),
        top.indices.tolist(),
        top.values.tolist(),
        num_top,
        strict=True,
    )
    return [
        PromptLogprob(token_id, value, rank, tuple(map(Logprob, ids[:n], values[:n])))
        for token_id, value, rank, ids, values, n in found
    ]
