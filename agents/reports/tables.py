"""Tables for the terminal and for Markdown files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table


def markdown_table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown, a line for each row, without a line break at the end."""
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows))


def terminal_table(head: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None, texts: int = 1, **style: Any) -> Table:
    """Return a table for rich's console.

    Args:
        head: Names of the columns.
        rows: Their cells.
        title: Above the table.
        texts: How many columns hold texts and are flush left; the others hold numbers and are flush right.
        **style: Further settings of rich's `Table`.
    """
    table = Table(title=title, **style)
    for number, column in enumerate(head):
        table.add_column(column, justify="left" if number < texts else "right")
    for row in rows:
        table.add_row(*row)
    return table
