"""Weights from safetensors: only the tensors that are asked for, in the dtype and place wanted."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from sliceserve.kernels.linear import PackedLinear
from sliceserve.models.errors import ModelError
from sliceserve.models.files import read_json

ALL = slice(None)


def find_tensors(path: Path) -> dict[str, Path]:
    """Which file of a model's folder holds which tensor; from the index where there is one.

    Raises ModelError if there are no safetensors, or the index names a file that is missing.
    """
    index = path / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map", {})
        if absent := sorted({f for f in weight_map.values() if not (path / f).is_file()}):
            raise ModelError(f"{index} names files that are not there: {', '.join(absent)}")
        return {name: path / file for name, file in weight_map.items()}
    file = path / "model.safetensors"
    if not file.is_file():
        raise ModelError(
            f"{path} has no model.safetensors; weights in .bin or .pt files are not read, because "
            "loading them can run code: convert them with transformers' save_pretrained"
        )
    with _open(file, "cpu") as tensors:
        return dict.fromkeys(tensors.keys(), file)


class WeightReader:
    """Reads tensors of a model's folder as ``dtype`` on ``device``. A context manager: files stay
    open until it ends. Raises ModelError naming the tensor and the file when one is missing or of
    another shape than asked for."""

    def __init__(self, path: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._path = path
        self._dtype = dtype
        self.device = device
        self._files = find_tensors(path)
        self._opened: dict[Path, safe_open] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "WeightReader":
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def tensor(
        self, name: str, *shape: int, rows: slice = ALL, columns: slice = ALL
    ) -> torch.Tensor:
        """The tensor, which must have ``shape``; of a part of its rows or columns, no more than
        that part is read."""
        file = self._files.get(name)
        if file is None:
            raise ModelError(f"the weights in {self._path} have no tensor {name}")
        if file not in self._opened:
            self._opened[file] = self._stack.enter_context(_open(file, str(self.device)))
        try:
            stored = self._opened[file].get_slice(name)
            if tuple(stored.get_shape()) != shape:
                raise ModelError(
                    f"tensor {name} in {file} must have shape {shape}, got "
                    f"{tuple(stored.get_shape())}; config.json and the weights do not belong "
                    "together"
                )
            if rows == columns == ALL:
                return self._opened[file].get_tensor(name).to(self._dtype)
            return stored[(rows, columns)[: len(shape)]].to(self._dtype)
        except SafetensorError as error:
            raise ModelError(f"cannot read tensor {name} from {file}: {error}") from error

    def linear(
        self,
        parts: Sequence[tuple[str, int, slice]],
        in_features: int,
        columns: slice = ALL,
        bias: bool = False,
    ) -> PackedLinear:
        """One linear layer out of several that share their input. ``parts`` are (name, its number
        of outputs, which of them are wanted); ``columns`` are the inputs that there will be."""
        weights = [
            self.tensor(f"{name}.weight", size, in_features, rows=rows, columns=columns)
            for name, size, rows in parts
        ]
        if not bias:
            return PackedLinear(_join(weights))
        biases = [self.tensor(f"{name}.bias", size, rows=rows) for name, size, rows in parts]
        return PackedLinear(_join(weights), _join(biases))


def _join(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _open(file: Path, device: str) -> safe_open:
    try:
        return safe_open(file, framework="pt", device=device)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read {file}: {error}") from error
