"""Files of models: JSON, the cache folder, content digests."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sliceserve.models.errors import ModelError

_DIGEST_CHUNK = 1 << 20


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ModelError naming the file if there is none in it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def cache_dir() -> Path:
    """Where converted models and digests are kept: ``$SLICESERVE_CACHE``, else the user's cache."""
    if override := os.environ.get("SLICESERVE_CACHE"):
        return Path(override)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sliceserve"


def content_digest(files: Iterable[Path]) -> str:
    """sha256, in hex, over the content of files in the given order, whatever their names.

    Kept in the cache folder under the files' real paths, sizes and modification times, so that
    large files are read once.
    """
    files = [file.resolve() for file in files]
    stats = [file.stat() for file in files]
    identity = [
        [str(file), stat.st_size, stat.st_mtime_ns] for file, stat in zip(files, stats, strict=True)
    ]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    cached = cache_dir() / "digests" / key
    # A cache that is not there or cannot be written costs time, and nothing else.
    with contextlib.suppress(OSError):
        return cached.read_text()
    digest = hashlib.sha256()
    for file in files:
        digest.update(_file_digest(file))
    with contextlib.suppress(OSError):
        _write_atomically(cached, digest.hexdigest())
    return digest.hexdigest()


def _file_digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_DIGEST_CHUNK):
            digest.update(chunk)
    return digest.digest()


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)
