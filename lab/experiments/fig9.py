"""Inversion among others: do bystanders and chance in the order of updates protect anybody?

Figure 9 of the paper, with its attack and a stronger one, from a client's seat and from the
broker's. All train at once; the broker answers after a random time, or at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich.console import RenderableType

from lab.credit import load
from lab.experiments.fig8 import EPSILONS
from lab.experiments.fig8 import least_rows as least_rows
from lab.experiments.fig8 import series as series
from lab.experiments.frame import Cell, Finished, Outcome
from lab.experiments.inversion_course import Setting, judge

NAME = "fig9"
WORDS = "Inversion among bystanders, in random order, from a client's and the broker's seat."

BYSTANDERS: Final = (0, 1, 2, 4, 8)
DELAY: Final = 0.5
"""The paper's broker sleeps for 0 to 500 ms before it answers."""


def cells(quick: bool, seeds: int | None) -> list[Cell]:
    """All cells; the quick ones are those with a delay, and with 0, 1 and 4 bystanders."""
    return [{"part": "bystanders", "setting": asdict(Setting(
                victim=victim, sends=sends, epsilon=epsilon, bystanders=bystanders, delay=delay,
                seed=seed))}
            for victim in ("flipped", "unlike") for sends in ("honest", "zeros")
            for delay in ((DELAY,) if quick else (DELAY, 0.0))
            for bystanders in (BYSTANDERS[:2] + BYSTANDERS[3:4] if quick else BYSTANDERS)
            for epsilon in EPSILONS
            for seed in range(seeds or (1 if quick else 5))]


def run(cell: Cell, data: Path | None) -> Outcome:
    """One course, and what comes of it: :func:`lab.experiments.inversion_course.judge`."""
    return judge(load(data), Setting(**cell["setting"]))


def tables(finished: Sequence[Finished]) -> list[RenderableType]:
    """All tables."""
    from lab.experiments import inversion_report

    return inversion_report.tables(finished)


def plots(finished: Sequence[Finished], directory: Path) -> list[Path]:
    """Figure 9."""
    from lab.experiments import inversion_report

    return inversion_report.plots(finished, directory)
