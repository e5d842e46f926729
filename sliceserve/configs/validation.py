"""One way to refuse a setting, and one to keep it from being shown."""

from collections.abc import Sequence
from dataclasses import field
from typing import Any


def expect(holds: bool, name: str, expected: str, got: object) -> None:
    """Raise ValueError with a sentence for the person unless ``holds``."""
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {got}")


def expect_one_of(name: str, choices: Sequence[str], got: str) -> None:
    """Raise ValueError naming the choices unless ``got`` is one of them."""
    expect(got in choices, name, f"{', '.join(choices[:-1])} or {choices[-1]}", repr(got))


def secret(default: Any) -> Any:
    """A dataclass's field that neither ``repr`` nor ``dump_config`` shows."""
    return field(default=default, repr=False, metadata={"secret": True})
