"""Tables made for a terminal, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text


def page(parts: Iterable[RenderableType]) -> str:
    """Tables, and lines of text between them, as Markdown.

    A table's title comes above it and its caption below, as paragraphs.

    Raises:
        TypeError: for what is neither a table nor text.
    """
    made = []
    for part in parts:
        if isinstance(part, Table):
            made += _table(part)
        elif isinstance(part, str | Text):
            made.append(_plain(part))
        else:
            raise TypeError(f"neither a table nor text: {type(part).__name__}")
    return "\n\n".join(each for each in made if each) + "\n"


def _table(table: Table) -> list[str]:
    head = _line(column.header for column in table.columns)
    rule = _line(_rule(column) for column in table.columns)
    body = [_line(row) for row in zip(*(column.cells for column in table.columns), strict=True)]
    return [_plain(table.title or ""), "\n".join([head, rule, *body]), _plain(table.caption or "")]


def _rule(column: Column) -> str:
    return {"right": "---:", "center": ":---:"}.get(column.justify, "---")


def _line(cells: Iterable[RenderableType]) -> str:
    return "| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in cells) + " |"


def _plain(cell: RenderableType) -> str:
    """What a terminal would show, on one line."""
    text = cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain
    return " ".join(text.split())
