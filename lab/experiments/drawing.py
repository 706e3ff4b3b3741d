"""Pictures, each as PNG and as SVG, whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from accord.files import write_whole

MOST_POINTS: Final = 400
"""More points of a line than this nobody sees, and an SVG has them all in it."""


def begin() -> Any:
    """``matplotlib.pyplot``, set up to draw into files: the same picture makes the same file."""
    import matplotlib

    matplotlib.use("Agg")
    # Letters as letters: shapes of each would be most of the file, and nobody could search it.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "tormentor"})
    from matplotlib import pyplot

    return pyplot


def save(drawing: Any, directory: Path, name: str) -> list[Path]:
    """Write a drawing as ``name.png`` and ``name.svg``, and close it; their paths.

    Raises:
        Problem: ``DISK``.
    """
    pyplot = begin()
    drawing.tight_layout()
    written = []
    # A date would make each run's file another one.
    for kind, facts in (("png", {}), ("svg", {"Date": None})):
        page = io.BytesIO()
        drawing.savefig(page, format=kind, dpi=120, metadata=facts)
        written.append(directory / f"{name}.{kind}")
        write_whole(written[-1], page.getvalue())
    pyplot.close(drawing)
    return written


def drawn(points: Sequence[Any]) -> list[Any]:
    """Those points of a line that are drawn: at most :data:`MOST_POINTS`, evenly apart, the first
    and the last among them."""
    if len(points) <= MOST_POINTS:
        return list(points)
    return [points[i] for i in np.linspace(0, len(points) - 1, MOST_POINTS).round().astype(int)]
