"""How many bits a line carries at what time: a constant, or a measured trace."""

import csv
import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path

HEADER = ["t_s", "up_mbps"]
BITS_PER_MBIT = 1e6


class TraceError(ValueError):
    """A trace file that cannot be used; the message names the file and the line."""


@dataclass(frozen=True)
class RateTrace:
    """Steps of constant rate, repeated when they end.

    Step i lasts ``lengths_s[i]`` seconds at ``mbps[i]`` megabits (10^6 bits) a second; 0 is an
    outage. Raises ValueError unless the steps are of one number and carry anything at all.
    """

    lengths_s: tuple[float, ...]
    mbps: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.lengths_s) != len(self.mbps):
            raise ValueError(
                f"every step needs a length and a rate, got {len(self.lengths_s)} lengths and "
                f"{len(self.mbps)} rates"
            )
        if not all(0.0 < length < math.inf for length in self.lengths_s):
            raise ValueError("every step must last a time above 0")
        if not all(0.0 <= rate < math.inf for rate in self.mbps) or not any(self.mbps):
            raise ValueError("rates must be 0 (an outage) or more, and not all of them 0")

    @cached_property
    def _times(self) -> list[float]:
        """When each step starts, and when the last one ends."""
        return list(accumulate(self.lengths_s, initial=0.0))

    @cached_property
    def _bits(self) -> list[float]:
        """Bits carried by those times."""
        steps = zip(self.lengths_s, self.mbps, strict=True)
        return list(accumulate((s * r * BITS_PER_MBIT for s, r in steps), initial=0.0))

    def carried(self, until_s: float) -> float:
        """Bits that the line carries from 0 to ``until_s``."""
        laps, rest = divmod(until_s, self._times[-1])
        step = min(bisect_right(self._times, rest), len(self.mbps)) - 1
        partial = (rest - self._times[step]) * self.mbps[step] * BITS_PER_MBIT
        return laps * self._bits[-1] + self._bits[step] + partial

    def finish(self, start_s: float, num_bits: float) -> float:
        """The first time at which ``num_bits`` that enter the line at ``start_s`` are through."""
        if num_bits <= 0:
            return start_s
        total = self._bits[-1]
        target = self.carried(start_s) + num_bits
        laps = math.ceil(target / total) - 1
        rest = min(target - laps * total, total)
        if rest <= 0.0:
            # Rounding put the end of one lap into the next.
            laps, rest = laps - 1, total
        # The first step whose end reaches the target; its rate is above 0.
        step = bisect_left(self._bits, rest) - 1
        partial = (rest - self._bits[step]) / (self.mbps[step] * BITS_PER_MBIT)
        return max(start_s, laps * self._times[-1] + self._times[step] + partial)


def constant_rate(mbps: float) -> RateTrace:
    return RateTrace((1.0,), (mbps,))


def read_trace(path: str | Path) -> RateTrace:
    """A CSV file with the header ``t_s,up_mbps``: starts of steps in seconds, from 0 on, and their
    rates. The last step is as long as the one before it. Raises TraceError, or OSError."""
    rows = []
    with open(path, newline="", encoding="utf-8") as file:
        try:
            lines = csv.reader(file)
            if next(lines, None) != HEADER:
                raise TraceError(f"{path}: the first line must be {','.join(HEADER)}")
            for row in lines:
                rows.append(_parse_row(row, f"{path}, line {lines.line_num}"))
        except (UnicodeDecodeError, csv.Error) as error:
            raise TraceError(f"{path} is not a CSV text file: {error}") from error
    if len(rows) < 2:
        raise TraceError(f"{path}: expected two steps or more, got {len(rows)}")
    starts = [start for start, _ in rows]
    if starts[0] != 0.0:
        raise TraceError(f"{path}: the first step must start at 0, got {starts[0]:g}")
    lengths = [stop - start for start, stop in pairwise(starts)]
    if min(lengths) <= 0.0:
        at = next(i for i, length in enumerate(lengths) if length <= 0.0)
        raise TraceError(f"{path}: times must rise, got {starts[at + 1]:g} after {starts[at]:g}")
    try:
        return RateTrace((*lengths, lengths[-1]), tuple(rate for _, rate in rows))
    except ValueError as error:
        raise TraceError(f"{path}: {error}") from error


def _parse_row(row: list[str], where: str) -> tuple[float, float]:
    try:
        start, rate = map(float, row)
    except ValueError as error:
        raise TraceError(f"{where}: expected two numbers, got {','.join(row)!r}") from error
    if not math.isfinite(start) or not 0.0 <= rate < math.inf:
        raise TraceError(f"{where}: expected a time and a rate of 0 or more, got {','.join(row)}")
    return start, rate
