"""Hidden states of prompts through a codec, and what they weigh on the wire."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from sliceserve.codec.base import Codec, Run
from sliceserve.evaluation.prompts import Prompt, grouped
from sliceserve.transport.frames import encode as encode_frame
from sliceserve.transport.frames import frames_for
from sliceserve.transport.link import wire_bytes

# Bounds the memory that a codec takes at a time.
_ROWS_PER_CALL = 4096


@dataclass(frozen=True, slots=True)
class Rate:
    """Bits for each element of the hidden states: on the wire, and of the packets alone."""

    wire: float
    packets: float


def encode(codec: Codec, hidden: torch.Tensor, prompts: Sequence[Prompt]) -> list[bytes]:
    """(T, hidden_size), the rows of ``prompts`` → a packet each. Raises CodecError."""
    packets = [b""] * len(hidden)
    for rows, runs in _runs(prompts, with_token_ids=True):
        for row, packet in zip(rows, codec.encode(hidden[rows], runs), strict=True):
            packets[row] = packet
    return packets


def decode(
    codec: Codec, packets: Sequence[bytes], out: torch.Tensor, prompts: Sequence[Prompt]
) -> None:
    """Write packets to ``out`` (T, hidden_size), the rows of ``prompts``."""
    for rows, runs in _runs(prompts, with_token_ids=False):
        decoded = torch.empty_like(out[rows])
        codec.decode([packets[row] for row in rows], decoded, runs)
        out[rows] = decoded


def measure_rate(
    packets: Sequence[bytes], prompts: Sequence[Prompt], hidden_size: int, tokens_per_frame: int
) -> Rate:
    """What a client sends that has each whole sequence of ``prompts`` as its prompt: every byte of
    the WebSocket messages, their headers and those of the frames included."""
    num_tokens = num_wire = num_packet = start = 0
    for prompt in prompts:
        for sequence in prompt.sequences():
            sent = [packets[start + row] for row in sequence]
            num_tokens += len(sent)
            num_packet += sum(map(len, sent))
            num_wire += sum(
                wire_bytes(len(encode_frame(frame)), from_client=True)
                for frame in frames_for(1, 0, sent, tokens_per_frame)
            )
        start += prompt.num_rows
    num_elements = num_tokens * hidden_size
    return Rate(wire=8 * num_wire / num_elements, packets=8 * num_packet / num_elements)


def _runs(prompts: Sequence[Prompt], with_token_ids: bool) -> Iterator[tuple[list[int], list[Run]]]:
    """Rows, and the runs that they make: those of some prompts, then of their branches. A branch
    goes on from where its prompt's run has ended, so each pair must be used before the next."""
    for place, group in grouped(prompts, _ROWS_PER_CALL):
        trunk_rows, branch_rows = _rows(group, place.start)
        trunks = [_run(prompt.token_ids, None, with_token_ids) for prompt in group]
        yield trunk_rows, trunks
        if branch_rows:
            branches = [
                _run(branch, trunk.previous, with_token_ids)
                for prompt, trunk in zip(group, trunks, strict=True)
                for branch in prompt.branches
                if branch
            ]
            yield branch_rows, branches


def _rows(prompts: Sequence[Prompt], start: int) -> tuple[list[int], list[int]]:
    """Rows of the prompts' own tokens, and of their branches; the first of all is ``start``."""
    trunks: list[int] = []
    branches: list[int] = []
    for prompt in prompts:
        middle, stop = start + len(prompt.token_ids), start + prompt.num_rows
        trunks += range(start, middle)
        branches += range(middle, stop)
        start = stop
    return trunks, branches


def _run(token_ids: Sequence[int], previous: torch.Tensor | None, with_token_ids: bool) -> Run:
    # A codec may write over the state that it was given, and branches share theirs.
    previous = None if previous is None else previous.clone()
    return Run(len(token_ids), list(token_ids) if with_token_ids else (), previous)
