"""Goodput: requests that keep what was promised, by the second."""

from collections.abc import Iterable
from dataclasses import dataclass

from sliceserve.cli.bench.timeline import Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """A request is good if its TTFT and its TPOT are within these milliseconds, as far as they are
    set. One of a single token has no TPOT, and keeps that limit."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None

    def kept_by(self, timeline: Timeline) -> bool:
        """Whether a request that ended well was good."""
        if timeline.ttft_s is None:
            return False
        return _within(timeline.ttft_s, self.ttft_ms) and _within(timeline.tpot_s, self.tpot_ms)

    def goodput(self, timelines: Iterable[Timeline], seconds: float) -> float:
        """Good requests a second."""
        return sum(map(self.kept_by, timelines)) / seconds


def parse_limits(text: str) -> Limits:
    """ "ttft:1000,tpot:100", in milliseconds. Raises ValueError for anything else."""
    limits: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition(":")
        try:
            limits[f"{name}_ms"] = float(value)
            if name not in ("ttft", "tpot") or not limits[f"{name}_ms"] > 0:
                raise ValueError
        except ValueError:
            raise ValueError(
                f"expected limits in milliseconds, as ttft:1000,tpot:100, got {text!r}"
            ) from None
    return Limits(**limits)


def _within(seconds: float | None, limit_ms: float | None) -> bool:
    return seconds is None or limit_ms is None or 1e3 * seconds <= limit_ms
