"""The text that hidden states are measured on."""

from importlib.resources import files

import torch

from sliceserve.models.tokenizer import Tokenizer

WINDOW = 512
# Passages are about as long as a window, so that most windows are of one kind.
_PASSAGE_CHARS = 2000


def default_text() -> str:
    """Articles, stories, talk, questions, code and numbers, written for this: a file for each kind.
    Their passages take turns, so that every part of the text holds all kinds."""
    folder = files("sliceserve.calibration") / "text"
    placed = []
    for file in folder.iterdir():
        passages = _passages(file.read_text(encoding="utf-8"))
        placed += [((i + 0.5) / len(passages), file.name, text) for i, text in enumerate(passages)]
    return "\n\n".join(text for _, _, text in sorted(placed))


def _passages(text: str) -> list[str]:
    """Whole paragraphs, as many as make a passage."""
    passages = [""]
    for paragraph in text.strip().split("\n\n"):
        if len(passages[-1]) >= _PASSAGE_CHARS:
            passages.append("")
        passages[-1] += ("\n\n" if passages[-1] else "") + paragraph
    return passages


def windows_of(text: str, tokenizer: Tokenizer, max_tokens: int) -> torch.Tensor:
    """(num_windows, WINDOW) int64: sequences of their own; what is left over is not used."""
    token_ids = torch.tensor(tokenizer.encode(text)[:max_tokens])
    num_windows = len(token_ids) // WINDOW
    return token_ids[: num_windows * WINDOW].view(num_windows, WINDOW)
