"""Hidden states of the uncut model: at the cuts, and at the end, which is kept on disk."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sliceserve.evaluation.model import WholeModel
from sliceserve.evaluation.progress import Progress
from sliceserve.evaluation.prompts import Prompt
from sliceserve.models.files import cache_dir
from sliceserve.models.resolve import fingerprint

# Part of the names of the files; raise it when other numbers come out.
_FORMAT = 1


def run_uncut(
    model: WholeModel, prompts: Sequence[Prompt], cuts: Sequence[int], progress: Progress
) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    """What enters each layer of ``cuts``, and what leaves the last layer: (T, hidden_size) each.

    What leaves the last layer is taken from the cache folder where an earlier run has left it, and
    the layers above the highest cut are then not run.
    """
    kept = _kept_file(model, prompts)
    final = _load(kept, model.device)
    last = model.spec.num_layers
    states = capture(model, prompts, cuts if final is not None else [*cuts, last], progress)
    if final is None:
        final = states.pop(last)
        _save(kept, final)
    return states, final


def capture(
    model: WholeModel, prompts: Sequence[Prompt], ends: Sequence[int], progress: Progress
) -> dict[int, torch.Tensor]:
    """What has passed the layers below each of ``ends``: (T, hidden_size)."""
    states: dict[int, torch.Tensor] = {}
    hidden = model.embed(prompts)
    ends = sorted(set(ends))
    with progress("uncut model, sequences", len(ends) * len(prompts)) as advance:
        for first, stop in zip([0, *ends], ends, strict=False):
            model.run(hidden, first, stop, prompts, advance)
            states[stop] = hidden.clone()
    return states


def _kept_file(model: WholeModel, prompts: Sequence[Prompt]) -> Path:
    rows = [[list(prompt.token_ids), *map(list, prompt.branches)] for prompt in prompts]
    identity = [_FORMAT, fingerprint(model.path), model.dtype_name, model.device.type, rows]
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    return cache_dir() / "eval" / f"{name}.safetensors"


def _load(path: Path, device: torch.device) -> torch.Tensor | None:
    # A file that another version or a crash has left unreadable costs time, and nothing else.
    with contextlib.suppress(OSError, SafetensorError, KeyError):
        final: torch.Tensor = load_file(path, device=str(device))["final"]
        return final
    return None


def _save(path: Path, final: torch.Tensor) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        os.close(handle)
        save_file({"final": final.contiguous()}, temporary)
        os.replace(temporary, path)
