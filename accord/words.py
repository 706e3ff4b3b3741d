"""Numbers, times and paragraphs as a person reads them, whichever command prints them."""

from __future__ import annotations

import math
import shutil
import textwrap
from typing import Final

MOST_COLUMNS: Final = 80
"""Of prose, however wide the terminal: longer lines are hard to read."""


def number(value: float) -> str:
    """Three digits, or all before the point of a large number: 0.0161, 7.98, 15,766."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def bound(value: float) -> str:
    """An upper bound, as :func:`number` but never rounded down: 0.1174 is 0.118."""
    if not 0 < value < math.inf:
        return number(value)
    unit = 10.0 ** max(-300, min(0, math.floor(math.log10(value)) - 2))
    return number(math.ceil(value / unit * (1 - 1e-12)) * unit)


def duration(seconds: float) -> str:
    """A time in its two largest units, or in its largest where that is enough to plan with."""
    whole = round(seconds)
    units: tuple[tuple[int, str], ...] = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
    parts: list[str] = []
    for size, unit in units:
        count, whole = divmod(whole, size)
        if count:
            parts.append(f"{count} {unit}")
        if parts and (count == 0 or count > 9 or len(parts) == 2):
            break
    return " ".join(parts) or "0 s"


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
