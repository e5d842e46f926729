"""What a tenant has used of its limits, counted in a file that the workers of a server share."""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from mmap import mmap
from pathlib import Path

from sliceserve.api.usage import TIMES, Usage

# Bytes of the file that are locked, never read: one while the times change, then one a session.
_TIMES_LOCK, _SESSION_LOCKS = 0, 1 << 20


class SharedUsage(Usage):
    """One tenant's, in all processes that name the same folder. Open it once in a process: its
    places are locks on the file, which the system frees when a process dies, however it does."""

    def __init__(self, folder: Path, tenant: str) -> None:
        super().__init__()
        # A name can have any characters.
        path = folder / f"tenant-{hashlib.sha256(tenant.encode()).hexdigest()[:32]}"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._fd, TIMES.size)
        self._times = mmap(self._fd, TIMES.size)

    def leave_session(self, place: int) -> None:
        super().leave_session(place)
        self._lock(fcntl.LOCK_UN, _SESSION_LOCKS + place)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        self._lock(fcntl.LOCK_EX, _TIMES_LOCK)
        try:
            yield
        finally:
            self._lock(fcntl.LOCK_UN, _TIMES_LOCK)

    def _claim(self, place: int) -> bool:
        try:
            self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB, _SESSION_LOCKS + place)
        except OSError:
            return False
        return True

    def _lock(self, operation: int, byte: int) -> None:
        fcntl.lockf(self._fd, operation, 1, byte)
