"""One way to refuse a setting."""

from collections.abc import Sequence


def expect(holds: bool, name: str, expected: str, got: object) -> None:
    """Raise ValueError with a sentence for the person unless ``holds``."""
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {got}")


def expect_one_of(name: str, choices: Sequence[str], got: str) -> None:
    """Raise ValueError naming the choices unless ``got`` is one of them."""
    expect(got in choices, name, f"{', '.join(choices[:-1])} or {choices[-1]}", repr(got))
