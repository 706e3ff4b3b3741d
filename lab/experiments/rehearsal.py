"""A small race with Tor and without: whether machines, network and pictures work, in minutes.

It is what ``scripts/rehearse`` runs over hosts on one machine, and what is worth running first on
machines that cost money. All but its size is table 2's (:mod:`lab.experiments.table2`): the same
way of measuring, data, shares of it and noise. It is no row of that table: no step was looked for
with 25 clients, so they run with that of the nearest number for which one was; one seed; ours
alone, as there is nobody to compare with. The quick one has so few clients that their noise would
keep them from arriving for minutes: it has less noise, and longer steps, which that allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import RenderableType

from lab.experiments import table2, table2_report
from lab.experiments.frame import Cell, Finished

NAME = "rehearsal"
WORDS = "A small race with Tor and without, to try machines with; no row of the paper."

CLIENTS: Final = 25
QUICK_CLIENTS: Final = 6
LIMIT: Final = 300.0
QUICK_LIMIT: Final = 60.0
QUICK_EPSILON: Final = 8.0
"""Of each release; table 2's is 2."""
QUICK_STEP: Final = 0.5
SEEDS: Final = 1

race_of = table2.race_of
open_world = table2.open_world
series = table2.series
measures = table2.measures


def cell_of(clients: int, tor: bool, seed: int, limit: float) -> Cell:
    """One race as a cell, with the step of the nearest number of clients that table 2 has."""
    nearest = min(table2.SIZES, key=lambda size: abs(size - clients))
    return {**table2.cell_of(nearest, tor, "ours", seed, limit), "part": "rehearsal",
            "clients": clients}


def cells(quick: bool, seeds: int | None) -> list[Cell]:
    """With Tor and without."""
    clients, limit = (QUICK_CLIENTS, QUICK_LIMIT) if quick else (CLIENTS, LIMIT)
    noise = {"epsilon": QUICK_EPSILON, "step": QUICK_STEP} if quick else {}
    return [{**cell_of(clients, tor, seed, limit), **noise}
            for tor in (True, False) for seed in range(seeds or SEEDS)]


def tables(finished: Sequence[Finished]) -> list[RenderableType]:
    """As table 2's."""
    return table2_report.tables(
        finished, "Rehearsal, no row of the paper",
        "It shows that everything works, on how many clients there are; nobody looked for the best "
        "step with so many. 'Overhead' is with Tor to without.")


def plots(finished: Sequence[Finished], directory: Path) -> list[Path]:
    """Error over time, with Tor and without."""
    return table2_report.plots(finished, directory,
                               {True: "rehearsal-tor", False: "rehearsal-direct"})
