"""Codec profiles on disk, by what they are (a digest) and by what they are for (a key).

Only bytes pass through here; `sliceserve.codec.profile` reads them.
"""

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ProfileKey:
    """What one profile is made for: a model by its fingerprint, a cut, a predictor, and the
    ``version`` of the calibration that makes it."""

    fingerprint: str
    cut: int
    predictor: str
    version: int

    @property
    def name(self) -> str:
        return "-".join(map(str, astuple(self)))


class ProfileStore:
    """Profiles in ``folder``, which need not exist yet. Any number of processes may share it.

    Writing raises OSError. What cannot be read, or is not what its name says, is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        """Where the profile lies or would lie. ValueError for a digest that is none."""
        if not is_digest(digest):
            raise ValueError(f"a profile's digest has 64 hex digits, got {digest[:80]!r}")
        return self.folder / f"{digest}.safetensors"

    def get(self, digest: str) -> bytes | None:
        """The profile's bytes, checked against ``digest``; None if they are not here."""
        try:
            data = self.path(digest).read_bytes()
        except OSError:
            return None
        return data if digest_of(data) == digest else None

    def put(self, data: bytes) -> str:
        """Keep a profile, in the place of a damaged one if need be; its digest."""
        digest = digest_of(data)
        self._write(self.path(digest), data)
        return digest

    def find(self, key: ProfileKey) -> str | None:
        """The digest that was assigned to ``key``, whether its profile is still here or not."""
        try:
            digest = self._index(key).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            return None
        return digest if is_digest(digest) else None

    def assign(self, key: ProfileKey, digest: str) -> None:
        self._write(self._index(key), digest.encode())

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Held by one process at a time: the others wait for what it makes."""
        # Not on every system that a client runs on.
        import fcntl

        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _index(self, key: ProfileKey) -> Path:
        return self.folder / f"{key.name}.digest"

    def _write(self, path: Path, data: bytes) -> None:
        """All of the file or none of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
            try:
                file.write(data)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise


def digest_of(data: bytes) -> str:
    """sha256, in hex: the name of a profile."""
    return hashlib.sha256(data).hexdigest()


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None
