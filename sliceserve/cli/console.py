"""Where commands speak: results on standard output, everything else on standard error."""

from rich.console import Console

# Colours and spinners are rich's affair, and go to terminals only.
stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)
