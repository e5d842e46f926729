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
class Traffic:
    """What a client sends: tokens, bytes of their packets, and bytes of the WebSocket messages,
    headers and those of the frames included."""

    num_tokens: int = 0
    packet_bytes: int = 0
    wire_bytes: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            self.num_tokens + other.num_tokens,
            self.packet_bytes + other.packet_bytes,
            self.wire_bytes + other.wire_bytes,
        )

    def rate(self, hidden_size: int) -> float:
        """Bits on the wire for each element of the hidden states."""
        return 8 * self.wire_bytes / (self.num_tokens * hidden_size)

    def packet_rate(self, hidden_size: int) -> float:
        """Bits of the packets alone."""
        return 8 * self.packet_bytes / (self.num_tokens * hidden_size)


class Runs:
    """The runs that the rows of prompts make, for one side of a codec.

    Iterating yields rows and their runs: those of some prompts, then of their branches, which go
    on from where their prompt's run has ended; so each must be coded before the next is taken.
    ``ends`` are the last runs of the sequences, in order, once all have been.
    """

    def __init__(self, prompts: Sequence[Prompt], with_token_ids: bool) -> None:
        self.ends: list[Run] = []
        self._prompts = prompts
        self._with_token_ids = with_token_ids

    def __iter__(self) -> Iterator[tuple[list[int], list[Run]]]:
        for place, group in grouped(self._prompts, _ROWS_PER_CALL):
            trunk_rows, branch_rows = _rows(group, place.start)
            trunks = [self.follow(None, prompt.token_ids) for prompt in group]
            if trunk_rows:
                yield trunk_rows, [run for run in trunks if run.num_rows > 0]
            branches = [
                [self.follow(trunk, branch) for branch in prompt.branches]
                for prompt, trunk in zip(group, trunks, strict=True)
            ]
            if branch_rows:
                yield branch_rows, [run for runs in branches for run in runs if run.num_rows > 0]
            for trunk, runs in zip(trunks, branches, strict=True):
                self.ends += runs or [trunk]

    def follow(self, run: Run | None, token_ids: Sequence[int]) -> Run:
        """The run of tokens that come after one that has been coded."""
        previous = None if run is None else run.previous
        return Run(
            len(token_ids),
            list(token_ids) if self._with_token_ids else (),
            # A codec may write over the state that it was given, and branches share theirs.
            None if previous is None else previous.clone(),
        )


def encode(codec: Codec, hidden: torch.Tensor, runs: Runs) -> list[bytes]:
    """(T, hidden_size), all rows of ``runs`` → a packet each. Raises CodecError."""
    packets = [b""] * len(hidden)
    for rows, of_rows in runs:
        for row, packet in zip(rows, codec.encode(hidden[rows], of_rows), strict=True):
            packets[row] = packet
    return packets


def decode(codec: Codec, packets: Sequence[bytes], out: torch.Tensor, runs: Runs) -> None:
    """Write packets to ``out`` (T, hidden_size), all rows of ``runs``."""
    for rows, of_rows in runs:
        decoded = torch.empty_like(out[rows])
        codec.decode([packets[row] for row in rows], decoded, of_rows)
        out[rows] = decoded


def traffic_of_prompts(
    packets: Sequence[bytes], prompts: Sequence[Prompt], tokens_per_frame: int
) -> Traffic:
    """What a client sends that has each whole sequence of ``prompts`` as its prompt."""
    total = Traffic()
    start = 0
    for prompt in prompts:
        for sequence in prompt.sequences():
            sent = [packets[start + row] for row in sequence]
            total += traffic(sent, tokens_per_frame)
        start += prompt.num_rows
    return total


def traffic(packets: Sequence[bytes], tokens_per_frame: int, first_position: int = 0) -> Traffic:
    """Packets of consecutive tokens of one request."""
    frames = frames_for(1, first_position, packets, tokens_per_frame)
    sizes = (wire_bytes(len(encode_frame(frame)), from_client=True) for frame in frames)
    return Traffic(len(packets), sum(map(len, packets)), sum(sizes))


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
