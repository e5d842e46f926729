"""How benchmarks speak: a table, or one JSON line."""

from collections.abc import Sequence
from typing import Any

import msgspec
import typer
from rich.table import Table

from sliceserve.cli.console import stderr, stdout


def make_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """The first column names the row; numbers get about three significant digits, None a dash."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=not i)
    for row in rows:
        table.add_row(*map(_text, row))
    return table


def finish(results: Sequence[dict[str, Any]], json: bool, *tables: Table) -> None:
    """Print tables on stdout. With ``json`` they go to stderr, and stdout gets one line: the
    result, or ``{"results": [...]}`` where there are several."""
    for table in tables:
        (stderr if json else stdout).print(table)
    if json:
        typer.echo(msgspec.json.encode(results[0] if len(results) == 1 else {"results": results}))


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    if 0 < abs(value) < 0.01:
        return f"{value:.1e}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}"
