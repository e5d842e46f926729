"""One exception for everything that can be wrong with a model."""


class ModelError(ValueError):
    """A model that cannot be found, read or run; the message says what to do about it."""
