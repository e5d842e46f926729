"""One way to refuse a setting."""


def expect(holds: bool, name: str, expected: str, got: object) -> None:
    """Raise ValueError with a sentence for the person unless ``holds``."""
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {got}")
