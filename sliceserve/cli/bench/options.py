"""Options that benchmarks share."""

from enum import Enum
from typing import Annotated, Any

import typer


class BackendName(str, Enum):
    """What runs the model."""

    WHOLE = "whole"
    SPLIT = "split"
    TRANSFORMERS = "transformers"


_BACKEND_HELP = (
    "whole: one engine in this process; split: the first layers in this process, the others in a "
    "server process on the loopback; transformers: its generate(). Repeatable: they run one after "
    "the other, and speedups are against the first."
)


def backends_option(default: str) -> Any:
    """``--backend``, repeatable."""
    return typer.Option("--backend", help=_BACKEND_HELP, show_default=default)


NumPrompts = Annotated[int, typer.Option(min=1, help="How many prompts are answered.")]
InputLen = Annotated[int, typer.Option(min=1, help="Tokens of each prompt, drawn at random.")]
OutputLen = Annotated[
    int, typer.Option(min=1, help="Tokens of each answer: greedy, end tokens are ignored.")
]
Seed = Annotated[int, typer.Option(help="Of the random prompts.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON line on stdout; the table goes to stderr.")
]


def numbers(text: str) -> list[int]:
    """ "8,15" → [8, 15]. Raises a usage error for anything else."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"expected numbers with commas between, got {text!r}") from None
