"""Table 2 and Figures 6 and 7 of the paper: time to the target, by clients, with and without Tor.

Real processes, one machine, emulated distance (:mod:`lab.geo`). Two contestants run on the same
network in the same run:

- ``ours``: a kept conversation, several private steps for each contact; a task's default
  validation;
- ``paper``: the paper's protocol at its best (:mod:`lab.contact`). Nobody judges its updates: the
  paper's own rounds gave 4 strikes in the first 48 updates of 6 honest clients with this noise, and
  what is measured is a protocol, not what being judged costs.

**The setting** is the same for both: credit data, 23 features, each client a bootstrap sample of
21,000 of the training rows, batches of 10 (the paper's), Laplace noise of epsilon 2 for each
release, clip 0.5. The paper says of its epsilon that it was from 0.5 to 5; with 1 its protocol
does not arrive with 10 clients within a quarter of an hour. Each contestant has its own best step
length for each number of clients (:data:`STEPS`, found by ``tormentor experiment table2-steps``).

**The clock** runs from "training begins" (all clients are in) to the arrival that
:mod:`lab.arrival` defines: the error on all training rows is within half a point of the converged
model's, and stays so. Joining is told apart. The price in privacy is told too: how many releases a
client has made by then, and what they come to by its ledger's accounting.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from rich.console import RenderableType

from lab.credit import load
from lab.demo import Failed
from lab.experiments import table2_report
from lab.experiments.frame import Cell, Finished, Outcome
from lab.geo import Ground
from lab.race import Race

NAME = "table2"
WORDS = "Time to the target by clients, with and without Tor, ours and the paper's protocol."

SIZES: Final = (10, 50, 100, 200)
QUICK_SIZES: Final = SIZES[:2]
SEEDS: Final = 3
LIMIT: Final = 900.0
QUICK_LIMIT: Final = 120.0
PAPER_VALIDATION: Final = {"test": "none", "screen": "none"}

STEPS: Final[dict[tuple[str, bool], dict[int, tuple[float, str, int]]]] = {
    ("ours", True): {10: (0.1, "1/sqrt(t)", 100), 50: (0.04, "1/sqrt(t)", 100),
                     100: (0.02, "1/sqrt(t)", 100), 200: (0.02, "1/sqrt(t)", 100)},
    ("ours", False): {10: (0.2, "1/sqrt(t)", 100), 50: (0.02, "1/sqrt(t)", 100),
                      100: (0.02, "1/sqrt(t)", 100), 200: (0.02, "1/sqrt(t)", 100)},
    ("paper", True): {10: (0.2, "1/sqrt(t)", 1), 50: (0.02, "constant", 1),
                      100: (0.005, "constant", 1), 200: (0.02, "1/sqrt(t)", 1)},
    ("paper", False): {10: (0.2, "1/sqrt(t)", 1), 50: (0.02, "constant", 1),
                       100: (0.005, "constant", 1), 200: (0.02, "1/sqrt(t)", 1)},
}
"""First step, schedule and local steps, by protocol, Tor and number of clients: what
``table2-steps`` found on the credit data with five seeds, by one rule for both contestants. 100
local steps, the same with Tor and without, so that they differ in nothing but the way."""


def cell_of(clients: int, tor: bool, protocol: str, seed: int, limit: float = LIMIT) -> Cell:
    """One race as a cell; it names everything that the result depends on."""
    step, schedule, local_steps = STEPS[protocol, tor][clients]
    return {"part": "table", "clients": clients, "tor": tor, "protocol": protocol, "seed": seed,
            "step": step, "schedule": schedule, "local_steps": local_steps, "limit": limit,
            "epsilon": 2.0, "batch": 10,
            "validation": PAPER_VALIDATION if protocol == "paper" else {}}


def race_of(cell: Cell) -> Race:
    """The race that a cell asks for."""
    names = {one.name for one in fields(Race)}
    return Race(**{name: value for name, value in cell.items() if name in names})


def cells(quick: bool, seeds: int | None) -> list[Cell]:
    """Each number of clients, with and without Tor, both contestants."""
    return [cell_of(clients, tor, protocol, seed, QUICK_LIMIT if quick else LIMIT)
            for clients in (QUICK_SIZES if quick else SIZES)
            for tor in (True, False)
            for protocol in ("ours", "paper")
            for seed in range(seeds or (1 if quick else SEEDS))]


def group(cell: Cell) -> Hashable:
    """Races that run at the same time: those of the paper's protocol that take minutes and leave
    the machine idle, seven updates a second for ten clients."""
    if cell["protocol"] == "paper" and cell["clients"] == 10:
        return "paper, 10"
    if cell["protocol"] == "paper" and cell["clients"] == 50 and cell["tor"]:
        return "paper, 50, Tor"
    return None


@asynccontextmanager
async def open_world(
    cells: Sequence[Cell], data: Path | None, directory: Path, say: Callable[[str], None],
) -> AsyncIterator[Callable[[Cell], Awaitable[Outcome]]]:
    """One network and its desks for all races."""
    # Sockets are in it, and their paths may not be long; nothing in it is a result.
    with TemporaryDirectory(prefix="geo-", ignore_cleanup_errors=True) as place:
        log = directory / "processes.log"
        async with Ground(Path(place) / "g", load(data), say, log=log) as ground:
            for tor in sorted({cell["tor"] for cell in cells}, reverse=True):
                await ground.open(tor)

            async def run(cell: Cell) -> Outcome:
                race = race_of(cell)
                try:
                    return await ground.race(race)
                except Failed as failure:
                    # It is the others' hour too: once more, before all of it is given up.
                    say(f"{race.words}: {failure}; it is run once more")
                return await ground.race(race)

            yield run


def tables(finished: Sequence[Finished]) -> list[RenderableType]:
    """Table 2, the paper's figures beside ours; what else was measured; the round trips."""
    return table2_report.tables(finished)


def plots(finished: Sequence[Finished], directory: Path) -> list[Path]:
    """Figures 6 and 7."""
    return table2_report.plots(finished, directory)


def series(finished: Sequence[Finished]) -> Iterable[Sequence[Any]]:
    """Error over time."""
    return table2_report.series(finished)


def measures(finished: Finished) -> dict[str, float | None]:
    """What a summary tells of each race."""
    return table2_report.measures(finished)
