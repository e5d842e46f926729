"""Recorded arrivals: when requests came and how long they were, fitted to another machine.

A trace is a CSV file with the columns ``t_s`` (seconds since the first request), ``input_tokens``
and ``output_tokens``, as made from the Azure LLM inference traces. It has no text.
"""

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path


class TraceError(RuntimeError):
    """A trace that cannot be used; a sentence for the user."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request of ``num_prompt`` tokens that comes at ``start_s`` and is answered with
    ``num_output``."""

    start_s: float
    num_prompt: int
    num_output: int


def read_trace(path: Path) -> list[Arrival]:
    """In the order of their arrival. Raises TraceError."""
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            arrivals = [
                Arrival(float(row["t_s"]), int(row["input_tokens"]), int(row["output_tokens"]))
                for row in csv.DictReader(lines)
            ]
    except OSError as error:
        raise TraceError(f"cannot read the trace {path}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise TraceError(
            f"{path} is no trace: expected columns t_s, input_tokens and output_tokens with a "
            f"number each, got {error}"
        ) from error
    return sorted(arrivals, key=lambda one: one.start_s)


def thin(
    arrivals: Sequence[Arrival], share: float, num_requests: int, seed: int = 0
) -> list[Arrival]:
    """The first ``num_requests`` of those that one of 1 / ``share`` servers would get, each
    request going to any of them by chance: that keeps the bursts. Raises TraceError if there are
    fewer."""
    draw = random.Random(seed)
    kept = [one for one in arrivals if draw.random() < share]
    if len(kept) < num_requests:
        raise TraceError(
            f"the trace has {len(arrivals)} requests, of which {len(kept)} are left at a share of "
            f"{share:g}; that is fewer than the {num_requests} asked for"
        )
    return kept[:num_requests]


def scale_lengths(
    arrivals: Sequence[Arrival], factor: float, least_prompt: int = 1
) -> list[Arrival]:
    """Prompts and answers ``factor`` times as long, rounded, of at least ``least_prompt`` and one
    token."""
    return [
        replace(
            one,
            num_prompt=max(least_prompt, round(factor * one.num_prompt)),
            num_output=max(1, round(factor * one.num_output)),
        )
        for one in arrivals
    ]


def scale_time(arrivals: Sequence[Arrival], rate: float) -> list[Arrival]:
    """The same gaps but for one factor: the first comes at 0, and ``rate`` requests a second."""
    first, last = arrivals[0].start_s, arrivals[-1].start_s
    if last <= first:
        return [replace(one, start_s=0.0) for one in arrivals]
    factor = (len(arrivals) - 1) / rate / (last - first)
    return [replace(one, start_s=factor * (one.start_s - first)) for one in arrivals]
