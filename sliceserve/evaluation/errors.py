"""What an evaluation refuses."""


class EvaluationError(ValueError):
    """An evaluation that cannot be run as asked: what was wrong, and what would do."""
