"""When tokens came, and what that says of a request: TTFT, TPOT and ITL."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(slots=True)
class Timeline:
    """Times of one request in seconds, on one clock: its call, and the arrival of each token."""

    start: float
    tokens: list[float] = field(default_factory=list)

    @property
    def ttft_s(self) -> float | None:
        """Time to first token; None while there is none."""
        return self.tokens[0] - self.start if self.tokens else None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None while there are fewer than two."""
        if len(self.tokens) < 2:
            return None
        return (self.tokens[-1] - self.tokens[0]) / (len(self.tokens) - 1)

    @property
    def itl_s(self) -> list[float]:
        """Inter-token latencies: the gaps between neighbouring tokens."""
        return [later - earlier for earlier, later in itertools.pairwise(self.tokens)]


def summarize_ms(seconds: Sequence[float]) -> dict[str, float] | None:
    """Mean and percentiles in milliseconds, interpolated linearly; None of nothing."""
    if not seconds:
        return None
    p50, p95, p99 = np.percentile(seconds, [50, 95, 99]) * 1e3
    return {
        "mean": float(np.mean(seconds) * 1e3),
        "p50": float(p50),
        "p95": float(p95),
        "p99": float(p99),
    }


def latencies(timelines: Iterable[Timeline]) -> dict[str, dict[str, float] | None]:
    """``ttft_ms`` and ``tpot_ms`` over requests, ``itl_ms`` over all gaps of all requests."""
    timelines = list(timelines)
    return {
        "ttft_ms": summarize_ms([t.ttft_s for t in timelines if t.ttft_s is not None]),
        "tpot_ms": summarize_ms([t.tpot_s for t in timelines if t.tpot_s is not None]),
        "itl_ms": summarize_ms([gap for t in timelines for gap in t.itl_s]),
    }
