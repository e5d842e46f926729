"""Runs a plan: packets and token ids in, packets or sampled tokens out. Tensors only."""

import time
from bisect import bisect_right
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, islice

import torch

from sliceserve.codec.base import Codec, CodecError
from sliceserve.codec.registry import codec_for_wire, known_codecs, warm_up
from sliceserve.configs import SamplingParams
from sliceserve.engine.adjustments import Adjustments
from sliceserve.engine.batch import Batch
from sliceserve.engine.grammars import Grammar
from sliceserve.engine.guides import Guides, OffGuide
from sliceserve.engine.layers import Layers
from sliceserve.engine.parallel import Leader
from sliceserve.engine.sampler import sample
from sliceserve.engine.scoring import score, slices
from sliceserve.engine.states import DecodedStates
from sliceserve.engine.stopwatch import Stopwatch
from sliceserve.scheduler.plan import PromptLogprob, ScheduledRequest, StepOutput, StepPlan


class BadRow(RuntimeError):
    """A row of ``request_id`` that cannot be decoded, encoded or followed by a token. Nothing of
    the step counts; it can run again without that request. ``code`` is for programs."""

    def __init__(self, request_id: str, code: str, message: str) -> None:
        super().__init__(message)
        self.request_id = request_id
        self.code = code


class Runner:
    """The forward pass of one engine.

    ``encoder`` makes a head of it: rows leave as packets. Without one, rows that end a request's
    known tokens are sampled. ``codecs`` are the decoders of packets that need more than a wire id,
    by the names that requests know them under. ``leader`` leads the other ranks, where the layers
    are divided between several.

    Where a codec predicts, the last decoded state of each request is kept until ``forget``, and
    the one at the end of each full block until the block is written again. Not thread-safe: the
    hidden states of a pass live in one buffer.
    """

    def __init__(
        self,
        layers: Layers,
        max_rows: int,
        encoder: Codec | None = None,
        codecs: Mapping[str, Codec] | None = None,
        leader: Leader | None = None,
    ) -> None:
        self._layers = layers
        self._decoder = layers.decoder
        self._leader = leader
        self._encoder = encoder
        self._hidden = layers.new_hidden(max_rows)
        self._codecs = dict(codecs or {})
        self._states = DecodedStates(layers.block_size)
        self._adjustments = Adjustments(self._decoder.spec.eos_token_ids)
        self._guides = Guides(self._decoder.spec.eos_token_ids)
        self._exit = Stopwatch(self._hidden.device)

    def codec(self, name: str) -> Codec:
        """The decoder of packets under ``name``; raises CodecError for an unknown one."""
        if name not in self._codecs:
            self._codecs[name] = codec_for_wire(name, self._decoder.spec.hidden_size)
        return self._codecs[name]

    def guide(self, request_id: str, grammar: Grammar) -> None:
        """What ``request_id`` samples from now on follows ``grammar``, until it is forgotten."""
        self._guides.begin(request_id, grammar)

    def forget(self, request_id: str) -> None:
        """The request has ended."""
        self._states.forget(request_id)
        self._adjustments.forget(request_id)
        self._guides.forget(request_id)

    def check(self, live: Container[str]) -> None:
        """Raise SchedulerError if anything is kept of requests that are not ``live``."""
        self._states.check(live)
        self._adjustments.check(live)
        self._guides.check(live)

    def expect_alive(self) -> None:
        """Raise RanksLost if another rank has ended."""
        if self._leader is not None:
            self._leader.expect_alive()

    def close(self) -> None:
        """End the other ranks."""
        if self._leader is not None:
            self._leader.close()

    def warm_up(self) -> None:
        """Compile what a row and a sampled token need, before anybody waits for it.

        Writes to block 0 of each segment, which is nobody's yet.
        """
        plain = [self.codec(wire_id) for wire_id in known_codecs()]
        for codec in self._codecs.values() if self._encoder is None else [self._encoder]:
            warm_up(codec, self._hidden.device)
        entry = self._decoder.first
        hidden = torch.zeros_like(self._hidden[:1])
        sampling = SamplingParams(temperature=1.0, top_k=2, seed=0, logprobs=1)
        request = ScheduledRequest(
            request_id="warm-up",
            entry_layer=entry,
            start=0,
            inputs=[0] if entry == 0 else plain[0].encode(hidden),
            block_tables=[[0] for _ in self._layers.segments],
            sampling=sampling if self._encoder is None else None,
            codec=plain[0].wire_id,
        )
        self.run(StepPlan([request]))
        self.forget(request.request_id)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepOutput:
        """Raises BadRow for a request that cannot go on."""
        started = time.perf_counter()
        batch = self._layers.batch(plan.requests)
        hidden = self._hidden[: batch.num_rows]  # (T, hidden)
        self._states.begin_step()
        self._fill(hidden, plan.requests, batch)
        scored = list(slices(_scored_rows(plan.requests, batch), self._decoder.spec.vocab_size))
        sampling = [i for i, r in enumerate(plan.requests) if r.sampling is not None]
        sampled = [batch.last_rows[i] for i in sampling]
        if self._leader is not None:
            logit_rows = [*scored, sampled] if sampled else scored
            self._leader.share(plan.requests, logit_rows, hidden)
        self._layers.forward(hidden, batch)
        self._exit.start()
        output = StepOutput()
        if self._encoder is not None:
            self._encode(hidden, plan.requests, batch, self._encoder, output)
        if scored:
            self._score(hidden, scored, plan.requests, output)
        if sampling:
            self._sample(hidden[sampled], [plan.requests[i] for i in sampling], output)
        exit_seconds = self._exit.read()
        self.expect_alive()
        self._states.end_step()
        self._share_time(plan, time.perf_counter() - started, output)
        return replace(output, exit_seconds=exit_seconds)

    def _fill(
        self, hidden: torch.Tensor, requests: Sequence[ScheduledRequest], batch: Batch
    ) -> None:
        """Embeddings for rows that enter as token ids, decoded packets for the others."""
        starts = batch.row_starts
        num_thin = sum(r.entry_layer == 0 for r in requests)
        if num_thin > 0:
            ids = [token_id for r in requests[:num_thin] for token_id in r.inputs]
            token_ids = torch.tensor(ids, device=hidden.device)
            self._decoder.embed(token_ids, out=hidden[: starts[num_thin]])
        first = num_thin
        for i in range(num_thin + 1, len(requests) + 1):
            # One call decodes a run of requests under one codec.
            if i < len(requests) and requests[i].codec == requests[first].codec:
                continue
            self._decode(requests[first:i], hidden[starts[first] : starts[i]])
            first = i

    def _decode(self, requests: Sequence[ScheduledRequest], out: torch.Tensor) -> None:
        """Packets of requests under one codec to rows (sum of their packets, hidden)."""
        codec = self.codec(requests[0].codec or "")
        packets = [packet for r in requests for packet in r.inputs]
        runs = []
        if codec.predicts:
            runs = [self._states.run(r, r.start, r.num_tokens) for r in requests]
        try:
            codec.decode(packets, out, runs)
        except CodecError as error:
            counts = [r.num_tokens for r in requests]
            raise _bad_row("invalid_packet", requests, counts, error) from error

    def _encode(
        self,
        hidden: torch.Tensor,
        requests: Sequence[ScheduledRequest],
        batch: Batch,
        encoder: Codec,
        output: StepOutput,
    ) -> None:
        """Rows that were sent before a preemption are not coded again: a prediction goes on from
        what the other side has decoded, and a replay may differ from that by rounding."""
        starts = batch.row_starts
        sent = [min(r.num_tokens, max(0, r.num_emitted - r.start)) for r in requests]
        counts = [r.num_tokens - n for r, n in zip(requests, sent, strict=True)]
        if any(sent):
            rows = [t for i, n in enumerate(sent) for t in range(starts[i] + n, starts[i + 1])]
            hidden = hidden[rows]
        runs = []
        if encoder.predicts:
            runs = [
                self._states.run(r, r.start + n, count, r.inputs[n:])
                for r, n, count in zip(requests, sent, counts, strict=True)
                if count > 0
            ]
        try:
            packets = iter(encoder.encode(hidden, runs) if len(hidden) else ())
        except CodecError as error:
            raise _bad_row("internal_error", requests, counts, error) from error
        for request, count in zip(requests, counts, strict=True):
            output.packets[request.request_id] = list(islice(packets, count))

    def _sample(
        self, hidden: torch.Tensor, requests: Sequence[ScheduledRequest], output: StepOutput
    ) -> None:
        """The tokens after ``hidden`` (B, hidden), the last row of each of ``requests``."""
        logits = self._decoder.logits(hidden).contiguous()  # (B, vocab)
        params = [p for r in requests if (p := r.sampling) is not None]
        positions = [r.start + r.num_tokens for r in requests]
        tokens = sample(logits, params, positions, lambda x: self._adjust(x, requests))
        for request, token in zip(requests, tokens, strict=True):
            output.sampled[request.request_id] = token

    def _adjust(self, logits: torch.Tensor, requests: Sequence[ScheduledRequest]) -> None:
        """Change ``logits`` (B, vocab) as the requests of its rows ask."""
        self._adjustments.apply(logits, requests)
        try:
            self._guides.apply(logits, requests)
        except OffGuide as error:
            raise BadRow(error.request_id, "invalid_request", str(error)) from error

    def _score(
        self,
        hidden: torch.Tensor,
        groups: list[list[int]],
        requests: Sequence[ScheduledRequest],
        output: StepOutput,
    ) -> None:
        """The prompts of ``requests``, by rows of ``hidden`` (T, hidden): those of all groups are
        as many as there are targets."""
        scorings = [(r.request_id, r.scoring) for r in requests if r.scoring is not None]
        targets = [target for _, s in scorings for target in s.targets]
        num_top = [s.num_top for _, s in scorings for _ in s.targets]
        scores: list[PromptLogprob] = []
        for rows in groups:
            part = slice(len(scores), len(scores) + len(rows))
            scores += score(self._decoder.logits(hidden[rows]), targets[part], num_top[part])
        remaining = iter(scores)
        for request_id, scoring in scorings:
            output.scored[request_id] = list(islice(remaining, len(scoring.targets)))

    def _share_time(self, plan: StepPlan, seconds: float, output: StepOutput) -> None:
        """Each request's share is its part of the layers times rows that were computed."""
        top = self._decoder.stop
        work = [r.num_tokens * (top - r.entry_layer) for r in plan.requests]
        total = sum(work)
        for request, part in zip(plan.requests, work, strict=True):
            output.seconds[request.request_id] = seconds * part / total


def _scored_rows(requests: Sequence[ScheduledRequest], batch: Batch) -> list[int]:
    """The rows that score prompts, in the order of their targets."""
    rows: list[int] = []
    for i, request in enumerate(requests):
        if request.scoring is not None:
            first = batch.row_starts[i] + request.scoring.first
            rows += range(first, first + len(request.scoring.targets))
    return rows


def _bad_row(
    code: str, requests: Sequence[ScheduledRequest], counts: Sequence[int], error: CodecError
) -> BadRow:
    """Which of ``requests``, with ``counts`` rows each, the row at ``error.index`` belongs to."""
    ends = list(accumulate(counts))
    return BadRow(requests[bisect_right(ends, error.index)].request_id, code, str(error))
