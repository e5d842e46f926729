"""What /metrics says at one moment, to be looked up by name."""

import math
from collections import defaultdict
from collections.abc import Iterable

from prometheus_client.core import Metric

_PREFIX = "sliceserve:"


class Readings:
    """The samples of ``families``. Names are those of samples, without the prefix:
    "generation_tokens_total". A series in which nothing has been counted yet is 0."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._samples: defaultdict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
        for family in families:
            for sample in family.samples:
                name = sample.name.removeprefix(_PREFIX)
                self._samples[name].append((sample.labels, sample.value))

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels."""
        wanted = labels.items()
        return sum((value for have, value in self._samples[name] if wanted <= have.items()), 0.0)

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Such sums for each value of ``label``."""
        wanted = labels.items()
        sums: defaultdict[str, float] = defaultdict(float)
        for have, value in self._samples[name]:
            if wanted <= have.items():
                sums[have[label]] += value
        return dict(sums)

    def buckets(self, name: str) -> dict[float, float]:
        """Of a histogram, summed over its labels: by upper bound, how many were at most that."""
        return {float(bound): n for bound, n in self.by(f"{name}_bucket", "le").items()}


def quantile(share: float, buckets: dict[float, float]) -> float | None:
    """What ``share`` (0 to 1) of the observations were at most: linear within a bucket, as
    Prometheus's histogram_quantile. None where there were none."""
    counts = sorted(buckets.items())
    if not counts or counts[-1][1] <= 0:
        return None
    rank = share * counts[-1][1]
    low, below = 0.0, 0.0
    for bound, count in counts:
        if count >= rank and count > below:
            break
        low, below = bound, count
    # Of what lies above the last finite bound no more is known.
    return low if math.isinf(bound) else low + (bound - low) * (rank - below) / (count - below)
