"""Keeps the answers of requests within their grammars: which tokens may come next, as masks.

Where a request stands in its grammar follows from the tokens that it has sampled and from nothing
else, so preemptions, batches and moves to another server change nothing.
"""

from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from sliceserve.engine.grammars import Grammar
from sliceserve.guides import load_llguidance, one_line
from sliceserve.scheduler.errors import expect_live
from sliceserve.scheduler.plan import ScheduledRequest

if TYPE_CHECKING:
    from llguidance import LLExecutor


class OffGuide(RuntimeError):
    """``request_id`` cannot go on: its guide takes too much, or its tokens do not follow it."""

    def __init__(self, request_id: str, message: str) -> None:
        super().__init__(message)
        self.request_id = request_id


class Guides:
    """The guided requests of a runner, from ``begin`` to ``forget``."""

    def __init__(self, eos_token_ids: Iterable[int]) -> None:
        self._eos_token_ids = frozenset(eos_token_ids)
        self._followers: dict[str, _Follower] = {}
        # A bit for each token, by guided row: written in every step, never made anew.
        self._words = torch.empty(0, 0, dtype=torch.int32)
        self._executor: LLExecutor | None = None

    def begin(self, request_id: str, grammar: Grammar) -> None:
        """``request_id`` follows ``grammar`` from now on."""
        self._followers[request_id] = _Follower(grammar)

    def forget(self, request_id: str) -> None:
        """The request has ended."""
        self._followers.pop(request_id, None)

    def check(self, live: Container[str]) -> None:
        """Raise SchedulerError if anything is kept of requests that are not ``live``."""
        expect_live("grammars", self._followers, live)

    def apply(self, logits: torch.Tensor, requests: Sequence[ScheduledRequest]) -> None:
        """Set to −∞ what grammars do not allow in ``logits`` (B, vocab) float32; row i is for the
        next token of ``requests[i]``. Raises OffGuide."""
        rows = [i for i, r in enumerate(requests) if r.request_id in self._followers]
        if not rows:
            return
        masks = self._masks([requests[i] for i in rows], logits.shape[-1], logits.is_cuda)
        if logits.is_cuda:
            forbid(logits, rows, masks)
        else:
            forbid_on_cpu(logits, rows, masks)

    def _masks(
        self, requests: Sequence[ScheduledRequest], vocab_size: int, pinned: bool
    ) -> torch.Tensor:
        """(len(requests), ⌈vocab_size / 32⌉) int32: bit ``t % 32`` of word ``t // 32`` allows t."""
        followers = [self._followers[r.request_id] for r in requests]
        for follower, request in zip(followers, requests, strict=True):
            follower.follow(request.outputs)
        num_words = followers[0].num_words
        if len(self._words) < len(requests):
            size = max(len(requests), 2 * len(self._words))
            self._words = torch.empty(size, num_words, dtype=torch.int32, pin_memory=pinned)
        if self._executor is None:
            self._executor = load_llguidance().LLExecutor()
        self._executor.unsafe_compute_mask_ptr(
            [(follower.matcher, row) for row, follower in enumerate(followers)],
            self._words.data_ptr(),
            4 * num_words,
            len(self._words),
        )
        masks = self._words[: len(requests), : -(-vocab_size // 32)]
        for follower, request, mask in zip(followers, requests, masks.numpy(), strict=True):
            if follower.matcher.is_error():
                raise OffGuide(request.request_id, one_line(follower.matcher.get_error()))
            if not mask.any():
                raise OffGuide(request.request_id, "the model has no token that may come next")
            self._put_off_end(request, mask.view(np.uint32))
        return masks

    def _put_off_end(self, request: ScheduledRequest, mask: np.ndarray) -> None:
        """Where the answer should not end yet, let it end only if nothing else may follow."""
        sampling = request.sampling
        if sampling is None:
            return
        is_early = len(request.outputs) < sampling.min_tokens
        if not (is_early or sampling.ignore_eos):
            return
        ends = self._eos_token_ids | (set(sampling.stop_token_ids) if is_early else set())
        others = mask.copy()
        for token_id in ends:
            if token_id < 32 * len(mask):
                others[token_id // 32] &= ~np.uint32(1 << token_id % 32)
        if others.any():
            mask[:] = others


class _Follower:
    """One request's place in its grammar."""

    def __init__(self, grammar: Grammar) -> None:
        self.matcher = grammar.matcher.deep_copy()
        self.num_words = -(-grammar.vocab_size // 32)
        self._num_followed = 0

    def follow(self, outputs: list[int]) -> None:
        """Take those of ``outputs`` that are new since the last call. The matcher is in error from
        then on if they are not of the grammar."""
        self.matcher.consume_tokens(outputs[self._num_followed :])
        self._num_followed = len(outputs)


def forbid(logits: torch.Tensor, rows: Sequence[int], masks: torch.Tensor) -> None:
    """Set ``logits[rows[i], t]`` to −∞ where bit t of ``masks[i]`` (num_words,) is 0."""
    words = masks.to(logits.device, non_blocking=True)
    shifts = torch.arange(32, dtype=torch.int32, device=logits.device)
    banned = ((words[:, :, None] >> shifts) & 1 == 0).flatten(1)  # (len(rows), 32 · num_words)
    logits[rows] = logits[rows].masked_fill(banned[:, : logits.shape[-1]], -torch.inf)


def forbid_on_cpu(logits: torch.Tensor, rows: Sequence[int], masks: torch.Tensor) -> None:
    """The same by NumPy, in a fifth of the time."""
    octets = np.ascontiguousarray(masks.numpy()).view(np.uint8)
    banned = np.unpackbits(~octets, axis=1, count=logits.shape[-1], bitorder="little").view(bool)
    values = logits.numpy()
    for row, tokens in zip(rows, banned, strict=True):
        np.copyto(values[row], -np.inf, where=tokens)
