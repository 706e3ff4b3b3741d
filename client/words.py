"""Numbers, times and paragraphs as a person reads them."""

from __future__ import annotations

import shutil
import textwrap
from typing import Final

MOST_COLUMNS: Final = 80


def number(value: float) -> str:
    """Three digits, or all before the point of a large number: 0.0161, 7.98, 15,766."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def seconds(length: float) -> str:
    """A length of time in words."""
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if length >= 2 * size:
            return f"{length / size:,.0f} {unit}"
    return f"{length:,.0f} seconds" if length >= 2 else "about a second"


def wrapped(text: str, hang: int = 0) -> str:
    """Each line broken at words, so that it fits the terminal and 80 columns.

    What has no blank in it, such as an address or a path, stays whole.

    Args:
        text: one paragraph a line.
        hang: how far the lines after a paragraph's first are indented.
    """
    width = min(MOST_COLUMNS, shutil.get_terminal_size().columns)
    return "\n".join(
        textwrap.fill(line, max(width, 2 * hang + 1), subsequent_indent=" " * hang,
                      break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n"))
