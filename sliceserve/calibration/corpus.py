"""The text that hidden states are measured on."""

from importlib.resources import files

import torch

from sliceserve.models.tokenizer import Tokenizer

WINDOW = 512


def default_text() -> str:
    """Prose, talk, code and numbers, written for this: their passages take turns, so that every
    part of the text holds all kinds."""
    folder = files("sliceserve.calibration") / "text"
    placed = []
    for name in ("prose.txt", "talk.txt", "code.txt"):
        passages = (folder / name).read_text(encoding="utf-8").split("\n\n")
        placed += [((i + 0.5) / len(passages), name, text) for i, text in enumerate(passages)]
    return "\n\n".join(text for _, _, text in sorted(placed))


def windows_of(text: str, tokenizer: Tokenizer, max_tokens: int) -> torch.Tensor:
    """(num_windows, WINDOW) int64: sequences of their own; what is left over is not used."""
    token_ids = torch.tensor(tokenizer.encode(text)[:max_tokens])
    num_windows = len(token_ids) // WINDOW
    return token_ids[: num_windows * WINDOW].view(num_windows, WINDOW)
