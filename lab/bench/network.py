"""Time to target with 200 clients: through Tor against the paper's protocol, and against no Tor.

The trainings are cells of the experiment ``table2``, run here anew, one after another, so that
each has this machine for itself; the two rows share one of them within a run of the bench.
"""

from __future__ import annotations

import asyncio
import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from accord.console import say
from lab import credit
from lab.bench.table import Measured
from lab.demo import Failed
from lab.experiments.frame import Cell, Finished, Notebook, find, run_all
from lab.experiments.table2_report import middle

CLIENTS: Final = 200
SEEDS: Final = 3
FEW: Final = 10
"""Clients of the quick form, which says so, and has one seed."""
_NEEDED: Final = (("ours", True), ("paper", True), ("ours", False))
"""Protocol, and whether through Tor, of all trainings."""
_TAIL: Final = 600
"""Characters of a failure, and of the log of what failed, that are told."""
_FIGURES: Final = ("joining", "updates", "releases", "epsilon_total", "strikes")
"""Of a training's result, besides when it arrived."""


@dataclass(frozen=True, slots=True)
class Side:
    """One contestant: its trainings, one for each seed."""

    done: Sequence[Finished]

    @property
    def cell(self) -> Cell:
        """The first of its cells; the others differ in the seed only."""
        return self.done[0].cell

    @property
    def times(self) -> list[float | None]:
        """Seconds from the begin of training until it arrived; None: not by the limit."""
        return [each.result["arrived"] for each in self.done]

    @property
    def seconds(self) -> float | None:
        """Their median; None where that did not arrive."""
        return middle(self.times)

    @property
    def words(self) -> str:
        """How it trained."""
        cell = self.cell
        falls = "" if cell["schedule"] == "constant" else cell["schedule"][1:]
        steps = cell["local_steps"]
        return (f"{steps} local step{'' if steps == 1 else 's'} of {cell['step']:g}{falls} in each "
                f"contact, {'judged by default' if not cell['validation'] else 'not judged'}")

    def figures(self, name: str) -> dict[str, Any]:
        """Its figures under its name: medians, and the times of all seeds."""
        told: dict[str, Any] = {
            f"{name}_{figure}": median(float(each.result[figure]) for each in self.done)
            for figure in _FIGURES}
        return told | {
            f"{name}_all_seconds": self.times,
            f"{name}_round_trip_ms": self.done[0].result["latency"]["median_ms"]}


def measure_protocol(quick: bool) -> Measured:
    """Ours through Tor over the paper's protocol through Tor."""
    sides, data = _trainings(quick)
    return compare(sides["ours", True], sides["paper", True], data, "our protocol",
                   "the paper's protocol (one gradient for each contact, a new stream for every "
                   "update)", "both through Tor")


def measure_overhead(quick: bool) -> Measured:
    """Ours through Tor over ours without."""
    sides, data = _trainings(quick)
    return compare(sides["ours", True], sides["ours", False], data, "through Tor", "without",
                   "our protocol both times")


def compare(ours: Side, other: Side, data: str, one: str, two: str, both: str) -> Measured:
    """What it comes to. Where the other did not arrive by the limit, that is its time, and the
    ratio is a bound: the true one is less.

    Args:
        ours, other: the contestants.
        data: which, for people.
        one, two, both: what they are, for people.

    Raises:
        Failed: ours did not arrive; or both are ours, and the one without Tor did not.
    """
    ours_took, limit = ours.seconds, float(other.cell["limit"])
    if ours_took is None:
        raise Failed(f"the target was not reached by ours, {one}")
    late = other.seconds is None
    if late and other.cell["protocol"] == "ours":
        raise Failed(f"the target was not reached by ours, {two}")
    took = limit if other.seconds is None else other.seconds
    cell, seeds = ours.cell, len(ours.done)
    mine, theirs = ours.figures("our"), other.figures("other")
    notes = [f"{cell['clients']} clients only"] if cell["clients"] != CLIENTS else []
    notes += ["a bound: the true ratio is less"] if late else []
    return {
        "ratio": ours_took / took, "note": "; ".join(notes),
        "how": f"The experiment table2 with {cell['clients']} clients, {seeds} "
               f"seed{'' if seeds == 1 else 's'}, {data}: seconds from the begin of training until "
               "the training error is within half a point of the converged model's and stays; "
               f"{one} ({ours.words}) against {two} ({other.words}), {both}, with emulated "
               f"distances, batch {cell['batch']} and epsilon {cell['epsilon']:g} for each "
               "release on both sides; each has the best step lengths of a grid "
               "(table2-steps, on the credit data). "
               + (f"The other did not arrive within {limit:g} s: the ratio is a bound, the true "
                  "one is less. " if late else "")
               + f"The price in privacy: by then each client had made {mine['our_releases']:,.0f} "
               f"releases against {theirs['other_releases']:,.0f}.",
        "our_seconds": ours_took, "other_seconds": took, "other_is_a_bound": late,
        "clients": cell["clients"], "seeds": seeds, "data": data, **mine, **theirs,
    }


@functools.cache
def _trainings(quick: bool) -> tuple[dict[tuple[str, bool], Side], str]:
    """The trainings of both rows, in one network and in this run: nothing kept earlier is used.
    All contestants have their turn with a seed before the next. And the data, for people.

    Raises:
        Failed: the experiment has no such cell.
    """
    experiment = find("table2")
    clients, seeds = (FEW, 1) if quick else (CLIENTS, SEEDS)
    every, cells = experiment.cells(quick, seeds), []
    for protocol, tor in _NEEDED:
        wanted: dict[str, Any] = {"clients": clients, "tor": tor, "protocol": protocol}
        found = [cell for cell in every if wanted.items() <= cell.items()]
        if len(found) != seeds:
            raise Failed(f"the experiment table2 has no cell with {wanted} for each seed")
        cells += found
    cells.sort(key=lambda cell: int(cell["seed"]))
    path = credit.find(None)
    table = credit.load(path)
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        log = Path(directory) / "processes.log"
        try:
            done = asyncio.run(run_all(
                experiment, cells, path, table.digest, Notebook(Path(directory) / "cells.jsonl"),
                1, lambda count, total: say(f"table2: {count} of {total} cells"), say))
        except Failed as failure:
            # What it points at is gone when whoever reads that would look.
            tail = log.read_text(errors="replace").strip()[-_TAIL:] if log.exists() else "nothing"
            raise Failed(f"{str(failure)[:_TAIL]}; the log ends with: {tail}") from None
    return {(protocol, tor): Side([
        each for each in done if (each.cell["protocol"], each.cell["tor"]) == (protocol, tor)])
        for protocol, tor in _NEEDED}, table.words
