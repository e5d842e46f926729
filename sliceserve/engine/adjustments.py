"""What requests ask to be changed in their logits: biases, penalties, no early end.

The logits of one token depend on the token ids before it and on nothing else, so batches,
preemptions and moves to another server change nothing. Only the logits concerned are touched, as
pairs of row and token id: nothing as large as the vocabulary is made, and where nobody asks the
cost is a look at each request.
"""

from array import array
from collections.abc import Container, Iterable, Sequence

import numpy as np
import torch

from sliceserve.scheduler.errors import expect_live
from sliceserve.scheduler.plan import ScheduledRequest


class Adjustments:
    """``apply`` in the order of vLLM: bias; repetition, frequency and presence penalty; and last
    the tokens that would end an answer too early. Keeps, of each request with penalties, how often
    it has had which token, until ``forget``."""

    def __init__(self, eos_token_ids: Iterable[int]) -> None:
        self._eos_token_ids = frozenset(eos_token_ids)
        self._histories: dict[str, _History] = {}

    def apply(self, logits: torch.Tensor, requests: Sequence[ScheduledRequest]) -> None:
        """Change ``logits`` (B, vocab) float32, contiguous, in place; row i is for the next token
        of ``requests[i]``, all of which sample."""
        self._add_biases(logits, requests)
        self._penalize(logits, requests)
        self._forbid_ends(logits, requests)

    def forget(self, request_id: str) -> None:
        """The request has ended."""
        self._histories.pop(request_id, None)

    def check(self, live: Container[str]) -> None:
        """Raise SchedulerError if anything is kept of requests that are not ``live``."""
        expect_live("token counts", self._histories, live)

    def _add_biases(self, logits: torch.Tensor, requests: Sequence[ScheduledRequest]) -> None:
        biases = [
            (row, token_id, bias)
            for row, request in enumerate(requests)
            if request.sampling is not None and request.sampling.logit_bias
            for token_id, bias in request.sampling.logit_bias
        ]
        if biases:
            rows, token_ids, values = zip(*biases, strict=True)
            places = _places(logits, np.array(rows), np.array(token_ids))
            biases_there = _on(logits, np.array(values, dtype=np.float32))
            logits.view(-1).index_add_(0, places, biases_there)

    def _penalize(self, logits: torch.Tensor, requests: Sequence[ScheduledRequest]) -> None:
        rows, penalties, histories = [], [], []
        for row, request in enumerate(requests):
            sampling = request.sampling
            if sampling is not None and sampling.penalizes:
                rows.append(row)
                penalties.append(
                    (
                        sampling.repetition_penalty,
                        sampling.frequency_penalty,
                        sampling.presence_penalty,
                    )
                )
                histories.append(self._history(request))
        if not rows:
            return
        sizes = [len(history.token_ids) for history in histories]
        token_ids = np.concatenate([np.array(h.token_ids) for h in histories])
        places = _places(logits, np.repeat(rows, sizes), token_ids)
        counts = _on(logits, np.concatenate([np.array(h.counts) for h in histories]))
        per_place = np.repeat(np.array(penalties, dtype=np.float32), sizes, axis=0)
        repetition, frequency, presence = _on(logits, per_place).unbind(1)
        values = logits.view(-1).index_select(0, places)
        values = torch.where(values > 0, values / repetition, values * repetition)
        values -= frequency * counts
        values -= presence * (counts > 0)
        logits.view(-1).index_copy_(0, places, values)

    def _history(self, request: ScheduledRequest) -> "_History":
        history = self._histories.get(request.request_id)
        if history is None:
            history = self._histories[request.request_id] = _History(request.prompt)
        history.follow(request.outputs)
        return history

    def _forbid_ends(self, logits: torch.Tensor, requests: Sequence[ScheduledRequest]) -> None:
        vocab_size = logits.shape[-1]
        rows, token_ids = [], []
        for row, request in enumerate(requests):
            sampling = request.sampling
            if sampling is None or len(request.outputs) >= sampling.min_tokens:
                continue
            if sampling.guide is not None:
                # Where only an end may follow there is no choice, and the guide knows.
                continue
            ends = {token_id for token_id in sampling.stop_token_ids if token_id < vocab_size}
            if not sampling.ignore_eos:
                ends |= self._eos_token_ids
            rows += [row] * len(ends)
            token_ids += ends
        if rows:
            places = _places(logits, np.array(rows), np.array(token_ids))
            logits.view(-1).index_fill_(0, places, -torch.inf)


class _History:
    """The token ids that a request has had, each once, and how often it has sampled them: 0 times
    for those of its prompt alone."""

    def __init__(self, prompt: Iterable[int]) -> None:
        self.token_ids = array("q")
        self.counts = array("f")
        self._places: dict[int, int] = {}
        self._num_followed = 0
        for token_id in prompt:
            self._place(token_id)

    def follow(self, outputs: list[int]) -> None:
        """Count those of ``outputs`` that are new since the last call."""
        for token_id in outputs[self._num_followed :]:
            self.counts[self._place(token_id)] += 1
        self._num_followed = len(outputs)

    def _place(self, token_id: int) -> int:
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self.token_ids):
            self.token_ids.append(token_id)
            self.counts.append(0.0)
        return place


def _places(logits: torch.Tensor, rows: np.ndarray, token_ids: np.ndarray) -> torch.Tensor:
    """Where they are in ``logits.view(-1)``: one index is ten times as fast as a pair is on a
    CPU. No place may come twice."""
    return _on(logits, rows * logits.shape[-1] + token_ids)


def _on(logits: torch.Tensor, values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values).to(logits.device, non_blocking=True)
