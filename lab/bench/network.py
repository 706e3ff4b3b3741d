"""Time to target with 200 clients: through Tor against the paper's protocol, and against no Tor.

The trainings are cells of the experiment ``table2``, run here anew, one after another, so that
each has this machine for itself; the two rows share one of them within a run of the bench.
"""

from __future__ import annotations

import asyncio
import functools
import tempfile
from pathlib import Path
from typing import Any, Final

from accord.console import say
from lab import credit
from lab.bench.table import Measured
from lab.demo import Failed
from lab.experiments.frame import EXPERIMENTS, Notebook, find, run_all

CLIENTS: Final = 200
FEW: Final = 10
"""Clients of the quick form, which says so."""


def measure_protocol(quick: bool) -> Measured:
    """Ours through Tor over the paper's protocol through Tor."""
    ours, paper = _seconds("ours", True, quick), _seconds("paper", True, quick)
    return _measured(ours, paper, quick, "our protocol", "the paper's protocol (one gradient for "
                     "each contact, a new stream for every update)", "both through Tor")


def measure_overhead(quick: bool) -> Measured:
    """Ours through Tor over ours without."""
    with_tor, without = _seconds("ours", True, quick), _seconds("ours", False, quick)
    return _measured(with_tor, without, quick, "through Tor", "without", "our protocol both times")


def _measured(ours: float, other: float, quick: bool, one: str, two: str, both: str) -> Measured:
    return {
        "ratio": ours / other,
        "how": f"Cells of the experiment table2 with {FEW if quick else CLIENTS} clients: seconds "
               f"from the begin of training until the target; {one} against {two}, {both}, with "
               "the experiment's emulated distances.",
        "our_seconds": ours, "other_seconds": other, "clients": FEW if quick else CLIENTS,
    }


def _seconds(protocol: str, tor: bool, quick: bool) -> float:
    """Seconds from the begin of training until the target.

    Raises:
        Failed: there is no such cell, or the target was not reached.
    """
    seconds = _trainings(quick)[protocol, tor]
    if seconds is None:
        raise Failed(f"the target was not reached by {protocol}, "
                     f"{'through' if tor else 'without'} Tor")
    return seconds


_NEEDED: Final = (("ours", True), ("paper", True), ("ours", False))


@functools.cache
def _trainings(quick: bool) -> dict[tuple[str, bool], float | None]:
    """The cells of both rows, in one network and in this run: nothing kept earlier is used.

    Raises:
        Failed: the experiment has no such cell.
    """
    if "table2" not in EXPERIMENTS:
        raise Failed("there is no experiment table2")
    experiment = find("table2")
    clients = FEW if quick else CLIENTS
    every, cells = experiment.cells(quick, 1), []
    for protocol, tor in _NEEDED:
        wanted: dict[str, Any] = {"clients": clients, "tor": tor, "protocol": protocol}
        found = [cell for cell in every
                 if {name: cell.get(name) for name in wanted} == wanted]
        if not found:
            raise Failed(f"the experiment table2 has no cell with {wanted}")
        cells.append(found[0])
    data = credit.find(None)
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        done = asyncio.run(run_all(
            experiment, cells, data, credit.load(data).digest,
            Notebook(Path(directory) / "cells.jsonl"), 1,
            lambda count, total: say(f"table2: {count} of {total} cells"), say))
    return {need: each.result.get("seconds") for need, each in zip(_NEEDED, done, strict=True)}
