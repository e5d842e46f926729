"""How many rows a step may have, so that it ends in time."""

# What a step's measurement is still worth after the next one: about the last thirty count.
_MEMORY = 0.97
# Rows of the first step, before anything is known.
_FIRST_ROWS = 16


class StepBudget:
    """Rows of a step that takes ``target_s`` seconds, learnt from steps that have run.

    A pass reads all weights once and then works on each row, so its time is close to a line,
    ``fixed + per_row · rows``, which moves slowly with the lengths of the contexts and with what
    else the machine does: least squares with forgetting follow it, and unlike additive increase
    find the rows at once when they change. Where all steps were alike and tell no line, time is
    taken to be proportional to rows. Beyond twice the rows of late the line is not trusted.
    """

    def __init__(self, target_s: float, max_rows: int) -> None:
        self._target_s = target_s
        self._max_rows = max_rows
        # Sums over the steps, older ones faded: 1, rows, seconds, rows², rows · seconds.
        self._n = self._r = self._s = self._rr = self._rs = 0.0
        self._widest = _FIRST_ROWS / 2

    def observe(self, num_rows: int, seconds: float) -> None:
        """A step of ``num_rows`` has taken so long."""
        self._n = _MEMORY * self._n + 1
        self._r = _MEMORY * self._r + num_rows
        self._s = _MEMORY * self._s + seconds
        self._rr = _MEMORY * self._rr + num_rows * num_rows
        self._rs = _MEMORY * self._rs + num_rows * seconds
        self._widest = max(_MEMORY * self._widest, num_rows)

    def num_rows(self, num_needed: int) -> int:
        """Rows for the next step: no fewer than ``num_needed``, were the target missed for it, and
        no more than ``max_rows``."""
        num_rows = min(self._in_time(), int(2 * self._widest))
        return min(self._max_rows, max(num_rows, num_needed, 1))

    def _in_time(self) -> int:
        if self._s <= 0:
            return self._max_rows
        fixed, per_row = self._line()
        if per_row <= 0:
            return self._max_rows if fixed <= self._target_s else 0
        return int(min(self._max_rows, max(0.0, (self._target_s - fixed) / per_row)))

    def _line(self) -> tuple[float, float]:
        """Seconds of an empty step and of each row, neither below 0."""
        proportional = self._s / self._r
        spread = self._n * self._rr - self._r * self._r
        # Rounding leaves a little where all steps were alike.
        if spread <= 1e-6 * self._r * self._r:
            return 0.0, proportional
        per_row = (self._n * self._rs - self._r * self._s) / spread
        per_row = min(max(per_row, 0.0), proportional)
        return (self._s - per_row * self._r) / self._n, per_row
