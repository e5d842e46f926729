"""What both sides of the calibrated codec know about a model's hidden states at one cut."""

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from sliceserve.codec.base import CodecError
from sliceserve.kernels.calibrated import NUM_POINTS, Tables

FORMAT = 2

# Packets have three bytes for a token id at most.
MAX_VOCAB_SIZE = 1 << 24

_KEY = "sliceserve.profile"

Predictor = Literal["state", "token", "none"]


class ProfileError(CodecError):
    """Bytes that are no profile, or one that does not fit the model: what is wrong with it."""


@dataclass(frozen=True)
class Profile:
    """Made once for a model and a cut by ``sliceserve.calibration``; all tensors on the CPU.

    A token's hidden state x (d,) is predicted, and what is left is transformed:

        p = offset + tokens[id] + embedding(id) @ token_weight + (previous - mean) @ state_weight
        x = p + y @ basis

    A decoded state is the most likely one, which is shorter than x was: components too small for
    the step are zero. The model gets mean + (x - mean) · gains[point], of the length that x had;
    ``previous`` below has no gain.

    A profile without transform has diagonals in place of all three matrices, (d,) each: it predicts
    less and costs more bits, but no time that grows with d².

    ``predictor`` says which terms there are: "state" has all, "token" all but the last, "none" the
    offset alone. ``embedding`` is the model's own, as stored; ``previous`` the decoded state of the
    token before (the mean where there is none, or where it was sent apart).

    mean, offset: (d,) float32. basis: (d, d) float16, rows by falling scale of their component, or
    (d,). token_weight, state_weight: of the basis' shape, float16, or None. token_ids: (n,) int32,
    ascending, and token_rows: (n, d) float16, the ``tokens`` above; all others have no row.
    base_step: the quantizer's step at operating point 0; it grows by 2^(1/4) from point to point.
    escape_norm: tokens of a larger norm are sent apart.
    sensitivity: (d + 1,) float32. (x - mean) @ sensitivity[:-1] + sensitivity[-1] is the number of
    points by which a token's step should be wider than the average. Encoders alone use it.
    rates: (NUM_POINTS,) float32, falling: mean bits per element of packets around each point.
    gains: (NUM_POINTS,) float32, of states decoded around each point.
    tables: of the entropy coder.
    model: fingerprint of the model. cut: entry layer. vocab_size: bound of the token ids.
    """

    model: str
    cut: int
    vocab_size: int
    predictor: Predictor
    base_step: float
    escape_norm: float
    mean: torch.Tensor
    offset: torch.Tensor
    basis: torch.Tensor
    sensitivity: torch.Tensor
    rates: torch.Tensor
    gains: torch.Tensor
    token_weight: torch.Tensor | None
    token_ids: torch.Tensor | None
    token_rows: torch.Tensor | None
    state_weight: torch.Tensor | None
    tables: Tables

    def __post_init__(self) -> None:
        # Kernels read them by address, and solvers hand out transposed ones.
        for name in _TENSORS:
            if (tensor := getattr(self, name)) is not None:
                object.__setattr__(self, name, tensor.contiguous())

    @property
    def hidden_size(self) -> int:
        return self.mean.shape[0]

    @cached_property
    def digest(self) -> str:
        """sha256 of ``to_bytes()``, in hex: the profile's name on the wire."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """A safetensors file; equal profiles give equal bytes."""
        given = {name: getattr(self, name) for name in _TENSORS}
        tensors = {name: tensor for name, tensor in given.items() if tensor is not None}
        for name in _TABLES:
            tensors[name] = torch.from_numpy(np.ascontiguousarray(getattr(self.tables, name)))
        settings = {"format": FORMAT} | {name: getattr(self, name) for name in _SETTINGS}
        # One key: safetensors writes several in an order that changes from run to run.
        data: bytes = save(tensors, {_KEY: json.dumps(settings)})
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> "Profile":
        """Raises ProfileError for anything that ``to_bytes`` does not write."""
        try:
            settings = _settings(data)
            tensors = load(data)
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ProfileError(f"this is no codec profile: {error}") from error
        _check(settings, tensors)
        try:
            tables = Tables(**{name: tensors[name].numpy() for name in _TABLES})
        except ValueError as error:
            raise ProfileError(f"the profile's tables cannot be used: {error}") from error
        return cls(**settings, **{name: tensors.get(name) for name in _TENSORS}, tables=tables)


_TABLES = {
    "frequencies": torch.uint16,
    "centroids": torch.int32,
    "class_thresholds": torch.int64,
    "base_scales": torch.uint8,
}
_TENSORS = {
    "mean": torch.float32,
    "offset": torch.float32,
    "basis": torch.float16,
    "sensitivity": torch.float32,
    "rates": torch.float32,
    "gains": torch.float32,
    "token_weight": torch.float16,
    "token_ids": torch.int32,
    "token_rows": torch.float16,
    "state_weight": torch.float16,
}
_SETTINGS: dict[str, type] = {
    "model": str,
    "cut": int,
    "vocab_size": int,
    "predictor": str,
    "base_step": float,
    "escape_norm": float,
}
_OF_PREDICTOR = {
    "state": {"token_weight", "token_ids", "token_rows", "state_weight"},
    "token": {"token_weight", "token_ids", "token_rows"},
    "none": set[str](),
}


def _settings(data: bytes) -> dict[str, Any]:
    """The settings in a safetensors header, which its library hands out for files only."""
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    settings: dict[str, Any] = json.loads(metadata[_KEY])
    if not isinstance(settings, dict):
        raise TypeError("its settings are no object")
    if (found := settings.pop("format")) != FORMAT:
        raise ProfileError(
            f"the profile has format {found!r}, this release reads {FORMAT!r}; "
            "calibrate again with this release"
        )
    return settings


def _check(settings: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Names, types, shapes and finite values."""
    if {name: type(value) for name, value in settings.items()} != _SETTINGS:
        raise ProfileError("the profile's settings are not those of this format")
    predictor = settings["predictor"]
    if predictor not in get_args(Predictor):
        raise ProfileError(f"the profile has an unknown predictor {predictor!r}")
    optional = set.union(*_OF_PREDICTOR.values()) - _OF_PREDICTOR[predictor]
    expected = {**_TENSORS, **_TABLES}
    for name in optional:
        del expected[name]
    if {name: tensor.dtype for name, tensor in tensors.items()} != expected:
        raise ProfileError(f"the profile does not hold the tensors of predictor {predictor!r}")
    hidden_size = tensors["mean"].numel()
    num_rows = tensors["token_ids"].numel() if "token_ids" in tensors else 0
    matrix = (hidden_size,) * min(2, tensors["basis"].dim())
    shapes = {
        "mean": (hidden_size,),
        "offset": (hidden_size,),
        "basis": matrix,
        "sensitivity": (hidden_size + 1,),
        "rates": (NUM_POINTS,),
        "gains": (NUM_POINTS,),
        "token_weight": matrix,
        "state_weight": matrix,
        "token_ids": (num_rows,),
        "token_rows": (num_rows, hidden_size),
        "base_scales": (hidden_size,),
    }
    for name, shape in shapes.items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            raise ProfileError(f"the profile's {name} has shape {tuple(tensors[name].shape)}")
    for name in _TENSORS:
        if name in tensors and not bool(tensors[name].isfinite().all()):
            raise ProfileError(f"the profile's {name} is not finite")
    if not (0 < settings["base_step"] < math.inf and 0 < settings["escape_norm"] < math.inf):
        raise ProfileError("the profile's step and threshold must be positive and finite")
    vocab_size = settings["vocab_size"]
    if not 0 < vocab_size <= MAX_VOCAB_SIZE:
        raise ProfileError(f"the profile's vocabulary of {vocab_size} does not fit three bytes")
    if num_rows:
        ids = tensors["token_ids"]
        if not (bool((ids.diff() > 0).all()) and int(ids[0]) >= 0 and int(ids[-1]) < vocab_size):
            raise ProfileError("the profile's token_ids must ascend within the vocabulary")
