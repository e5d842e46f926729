"""Text to evaluate on, as windows of tokens."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sliceserve.evaluation.errors import EvaluationError
from sliceserve.evaluation.prompts import Prompt
from sliceserve.models.tokenizer import Tokenizer

_WINDOW = 512


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON object of each line; a name that ends in .gz is unpacked. Raises EvaluationError
    naming the file that cannot be read or the line that holds none."""
    open_text = gzip.open if path.suffix == ".gz" else open
    try:
        with open_text(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                yield _parse(line, f"{path}, line {number}")
    except OSError as error:
        raise EvaluationError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path} is not text in UTF-8: {error}") from error


def read_windows(
    path: Path, tokenizer: Tokenizer, num_tokens: int, max_length: int
) -> list[Prompt]:
    """The first ``num_tokens`` tokens of the texts in a file, joined, 512 or ``max_length`` at a
    time. The last window may be short, and there may be fewer of them where the file ends.

    A line is a JSON object with the field ``text``. Raises EvaluationError for one without it,
    and for a file with fewer than two tokens.
    """
    ids: list[int] = []
    for number, line in enumerate(read_lines(path), start=1):
        if not isinstance(line.get("text"), str):
            raise EvaluationError(
                f"{path}, line {number} has no text; each line must be a JSON object with the "
                'field "text"'
            )
        ids += tokenizer.encode(line["text"])
        if len(ids) >= num_tokens:
            break
    ids = ids[:num_tokens]
    if len(ids) < 2:
        raise EvaluationError(f"{path} has {len(ids)} tokens; nothing can be predicted from them")
    window = min(_WINDOW, max_length)
    return [Prompt(ids[start : start + window]) for start in range(0, len(ids), window)]


def _parse(line: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise EvaluationError(f"{place} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise EvaluationError(f"{place} must hold a JSON object, got {type(value).__name__}")
    return value
