"""Rows of a model's embedding, as they are stored: equal on every side that has the model."""

from pathlib import Path

import torch
from safetensors import safe_open

from sliceserve.models.errors import ModelError
from sliceserve.models.spec import ModelSpec
from sliceserve.models.weights import find_tensors

_NAME = "model.embed_tokens.weight"


def read_embeddings(path: Path) -> torch.Tensor:
    """(vocab_size, hidden_size) on the CPU, of the dtype in which it is stored.

    Mapped into memory, not read: a token costs a row of it. Raises ModelError.
    """
    spec = ModelSpec.load(path)
    files = find_tensors(path)
    if _NAME not in files:
        raise ModelError(f"the weights in {path} have no tensor {_NAME}")
    with safe_open(files[_NAME], framework="pt", device="cpu") as tensors:
        table = tensors.get_tensor(_NAME)
    if table.shape != (spec.vocab_size, spec.hidden_size):
        raise ModelError(
            f"{_NAME} in {path} has shape {tuple(table.shape)}, expected "
            f"{(spec.vocab_size, spec.hidden_size)}"
        )
    return table
