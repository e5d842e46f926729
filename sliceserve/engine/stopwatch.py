"""How long the end of a pass takes, on whatever device."""

import time

import torch


class Stopwatch:
    """Measures from ``start`` to ``read``. A GPU may be far behind the calls that give it work, so
    there both are events among that work: nothing waits but ``read``, for work that whoever calls
    it has waited for already."""

    def __init__(self, device: torch.device) -> None:
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        if device.type == "cuda":
            self._events = (
                torch.cuda.Event(enable_timing=True),
                torch.cuda.Event(enable_timing=True),
            )
        self._started = 0.0

    def start(self) -> None:
        if self._events is not None:
            self._events[0].record()
        else:
            self._started = time.perf_counter()

    def read(self) -> float:
        """Seconds since ``start``."""
        if self._events is None:
            return time.perf_counter() - self._started
        start, stop = self._events
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1000
