"""Counts of values by size, as a Prometheus histogram has them."""

from bisect import bisect_left
from collections.abc import Sequence

import msgspec


class Distribution(msgspec.Struct):
    """``counts[i]`` values lay in ``(bounds[i - 1], bounds[i]]``, the last above all bounds;
    ``total`` is the sum of all."""

    bounds: list[float]
    counts: list[int]
    total: float = 0.0

    @classmethod
    def over(cls, bounds: Sequence[float]) -> "Distribution":
        """None yet, between ascending ``bounds``."""
        return cls(list(bounds), [0] * (len(bounds) + 1))

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
