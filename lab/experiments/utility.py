"""What a privacy budget buys: every choice compared at the same total epsilon.

A client has a budget for the whole training. It may spend it on many updates or on few, of small
batches with little noise each or of large ones; what an update may cost follows from the budget
(:func:`client.accounting.affordable_epsilon`). So nothing here changes the guarantee, and what is
compared is only what is learnt for it.

Four parts. ``alone``: batch, number of updates, schedule and first step, with and without
averaging, for a client alone. ``together``: the same for :data:`CLIENTS` clients with a broker
between them. ``clip``: the bound on gradients. ``price``: what one update's epsilon and noise come
to, for both kinds of noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import RenderableType

from accord.problems import BUDGET_SMALL, Problem
from accord.task import Training
from client.accounting import affordable_epsilon
from client.noise import Mechanism, Release
from lab.credit import Table, converged, load
from lab.experiments.alone import Part, loss_error_auc, train
from lab.experiments.frame import Cell, Finished, Outcome
from lab.setting import Config
from lab.simulation import Simulation

NAME = "utility"
WORDS = "What helps at the same total privacy: batch, updates, steps, clip, averaging."

DELTA: Final = 1e-6
CLIENTS: Final = 8
BUDGETS: Final = (0.5, 1.0, 2.0, 8.0)
ROWS: Final = (200, 500, 2100)
BATCHES: Final = (10, 50, 100, 200)
"""Besides a quarter, half, and all of the rows."""
UPDATES: Final = (20, 64, 200, 640, 2000, 4000)
TOGETHER_UPDATES: Final = 640
"""Most updates of each client in the runs with a broker."""
SCHEDULES: Final[dict[str, tuple[float, ...]]] = {
    "1/sqrt(t)": (1.0, 3.0, 10.0), "constant": (0.1, 0.3, 1.0, 3.0)}
"""First steps of a client alone, by schedule."""
TOGETHER_STEPS: Final = (0.1, 0.3, 1.0, 3.0)
"""First steps, 1/sqrt(t), where the steps of all clients are added up."""
CLIPS: Final = (0.125, 0.25, 0.5, 1.0)
_VALIDATION: Final = 100
_CONTACT: Final = 0.1


def batches(rows: int) -> list[int]:
    """The batches that are tried for a client of so many rows, ascending."""
    return sorted({b for b in (*BATCHES, rows // 4, rows // 2, rows) if b <= rows})


# -- cells -----------------------------------------------------------------------------------


def cells(quick: bool, seeds: int | None) -> list[Cell]:
    """All cells; see the module's first lines for the parts."""
    budgets = BUDGETS[1::2] if quick else BUDGETS
    sizes = ROWS[1:2] if quick else ROWS
    updates = UPDATES[:3:2] if quick else UPDATES
    found: list[Cell] = []
    # With few seeds it is luck which batch is best: a client alone has no one to average with.
    for part, most, often in (("alone", updates[-1], 16), ("together", TOGETHER_UPDATES, 4)):
        found += [
            {"part": part, "rows": rows, "budget": budget, "batch": batch, "updates": t,
             "seeds": seeds or often}
            for rows in sizes for budget in budgets
            for batch in (_few(rows) if quick else batches(rows))
            # One pass over the rows besides: as many updates as there are batches in them.
            for t in sorted({*updates, *([] if quick else [max(1, rows // batch)])}) if t <= most]
    found += [
        {"part": "clip", "rows": rows, "budget": budget, "batch": rows, "updates": t,
         "seeds": seeds or (3 if quick else 10)}
        for rows in sizes for budget in budgets for t in (updates[1:] if quick else updates[1:4])]
    found += [
        {"part": "price", "rows": rows, "budget": budget, "batch": batch, "updates": t,
         "mechanism": mechanism, "seeds": 0}
        for rows in sizes for budget in budgets
        for batch in (_few(rows) if quick else batches(rows))
        for t in (updates[1:] if quick else updates[1:5])
        for mechanism in ("laplace", "gaussian")]
    return found


def _few(rows: int) -> list[int]:
    return [10, 50, rows // 4, rows]


def run(cell: Cell, data: Path | None) -> Outcome:
    """One budget, batch and number of updates.

    ``epsilon`` of one update (None: the budget does not buy so many); ``noise``: root mean square
    length of one update's noise over the greatest that the mean gradient can have. ``runs``: one
    entry for each way to train, with a list over the seeds of each measure, on rows that nobody
    trained on. ``limits``: the same measures, without any privacy, of converged models on the
    client's rows, on all clients' rows, and of one answer for all (error only)."""
    table = load(data)
    dimension = table.rows.shape[1]
    mechanism: Mechanism = cell.get("mechanism", "laplace")
    try:
        epsilon = affordable_epsilon(cell["budget"], DELTA, cell["updates"], cell["batch"],
                                     cell["rows"], dimension, mechanism)
    except Problem as problem:
        if problem.kind is not BUDGET_SMALL:
            raise
        return {"epsilon": None, "noise": None, "runs": [], "limits": {}}
    release = Release(epsilon, cell["batch"], cell["rows"], dimension, mechanism,
                      DELTA if mechanism == "gaussian" else 0.0)
    worlds = [share_out(table, cell["rows"], seed) for seed in range(cell["seeds"])]
    runs = [way(cell, epsilon, worlds, training)
            for way, training in _WAYS.get(cell["part"], list)()]
    return {"epsilon": epsilon, "noise": release.noise_ratio, "runs": runs,
            "limits": _limits(worlds)}


_Way = Callable[[Cell, float, Sequence["World"], dict[str, Any]], dict[str, Any]]


def _ways_alone() -> list[tuple[_Way, dict[str, Any]]]:
    return [(_alone, {"schedule": schedule, "step": step})
            for schedule, steps in SCHEDULES.items() for step in steps]


def _ways_together() -> list[tuple[_Way, dict[str, Any]]]:
    return [(_together, {"schedule": "1/sqrt(t)", "step": step}) for step in TOGETHER_STEPS]


def _ways_clip() -> list[tuple[_Way, dict[str, Any]]]:
    # A step that is as long at the start, whatever the clip leaves of the gradients.
    return [(_alone, {"schedule": "1/sqrt(t)", "step": step * max(1.0, 0.5 / clip), "clip": clip})
            for clip in CLIPS for step in SCHEDULES["1/sqrt(t)"]]


_WAYS: Final[dict[str, Callable[[], list[tuple[_Way, dict[str, Any]]]]]] = {
    "alone": _ways_alone, "together": _ways_together, "clip": _ways_clip}
"""How to train, by part."""


# -- who holds what, and what it comes to ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class World:
    """One seed's share-out of a table.

    Attributes:
        table: what :data:`CLIENTS` clients and a curator have between them.
        mine: the rows of the client that is alone.
        rest: rows that nobody has, to measure by.
        seed: which.
    """

    table: Table
    mine: Part
    rest: Part
    seed: int


def share_out(table: Table, rows: int, seed: int) -> World:
    """Deal a table so that each of :data:`CLIENTS` clients holds so many rows.

    Raises:
        ValueError: it has too few.
    """
    # The simulation lets clients have 70 % of its table.
    whole = -(-CLIENTS * rows * 10 // 7)
    if whole >= len(table.labels):
        raise ValueError(f"{CLIENTS} clients of {rows} rows out of {len(table.labels)}")
    order = np.random.default_rng([seed, 6]).permutation(len(table.labels))
    kept, rest = order[:whole], order[whole:]
    small = Table(table.schema, table.rows[kept], table.labels[kept], table.digest, table.words,
                  table.order[kept])
    return World(small, (small.rows[:rows], small.labels[:rows]),
                 (table.rows[rest], table.labels[rest]), seed)


def _alone(
    cell: Cell, epsilon: float, worlds: Sequence[World], training: dict[str, Any]
) -> dict[str, Any]:
    """A client alone, by the last model and by the averaged one."""
    live, means = [], []
    for world in worlds:
        course = train(world.table.schema, Training(**training), world.mine, cell["batch"],
                       epsilon, [cell["updates"]], [world.seed, 7])
        live.append(loss_error_auc(course.live[-1], world.rest))
        means.append(loss_error_auc(course.averaged[-1], world.rest))
    return {"who": "alone", **training, "last": live, "averaged": means}


def _together(
    cell: Cell, epsilon: float, worlds: Sequence[World], training: dict[str, Any]
) -> dict[str, Any]:
    """Several clients and a broker, by the last model and by what is published."""
    last, published = [], []
    for world in worlds:
        simulation = Simulation(world.table, Config(
            clients=CLIENTS, epsilon=epsilon, batch=cell["batch"], training=training,
            most_updates=cell["updates"], seed=world.seed, validation_rows=_VALIDATION,
            # Two contacts to come in, and a tenth for puzzles, which take milliseconds.
            contact=_CONTACT, seconds=2.0 + 1.2 * _CONTACT * cell["updates"], every=1e6))
        result = simulation.run()
        if result.honest_updates != CLIENTS * cell["updates"]:
            raise AssertionError("the clients did not come to make their updates")
        last.append(loss_error_auc(simulation.weights, world.rest))
        published.append(loss_error_auc(simulation.brokerage.outcome[0], world.rest))
    return {"who": "together", **training, "last": last, "published": published}


def _limits(worlds: Sequence[World]) -> dict[str, Any]:
    """What there is to be had without privacy: means over the seeds."""
    if not worlds:
        return {}

    def of(part: list[tuple[float, float, float]]) -> list[float]:
        return [float(value) for value in np.mean(part, axis=0)]

    cut = CLIENTS * len(worlds[0].mine[1])
    return {
        "alone": of([loss_error_auc(converged(*w.mine), w.rest) for w in worlds]),
        "together": of([loss_error_auc(
            converged(w.table.rows[:cut], w.table.labels[:cut]), w.rest) for w in worlds]),
        "nothing": float(np.mean([min(w.rest[1].mean(), 1 - w.rest[1].mean()) for w in worlds])),
    }


def least_rows(cell: Cell) -> int:
    """Enough for all clients, of whose table they may have 70 %, and some to measure by."""
    return int(-(-CLIENTS * cell["rows"] * 10 // 7)) + _VALIDATION


def series(finished: Sequence[Finished]) -> Iterator[Sequence[Any]]:
    """Every seed's loss, error and AUC, by which model, for each way to train."""
    yield ["part", "rows", "budget", "batch", "updates", "epsilon", "schedule", "step", "clip",
           "model", "seed", "loss", "error", "auc"]
    for f in finished:
        for run in f.result["runs"]:
            names = [*(f.cell[name] for name in ("part", "rows", "budget", "batch", "updates")),
                     f.result["epsilon"], run["schedule"], run["step"], run.get("clip")]
            for model in ("last", "averaged", "published"):
                for seed, told in enumerate(run.get(model, [])):
                    yield [*names, model, seed, *told]


def measures(finished: Finished) -> dict[str, float | None]:
    """The budget's price, and means over the cell's own seeds of what the last model of each way to
    train came to."""
    told: dict[str, float | None] = {
        name: finished.result[name] for name in ("epsilon", "noise")}
    for run in finished.result["runs"]:
        way = f"{run['schedule']} step {run['step']:g} clip {run.get('clip', 0.5):g}"
        for i, name in enumerate(("loss", "error", "auc")):
            told[f"{way} {name}"] = float(np.mean([seed[i] for seed in run["last"]]))
    return told


def tables(finished: Sequence[Finished]) -> list[RenderableType]:
    """All tables."""
    from lab.experiments import utility_report

    return utility_report.tables(finished)


def plots(finished: Sequence[Finished], directory: Path) -> list[Path]:
    """Loss by number of updates."""
    from lab.experiments import utility_report

    return utility_report.plots(finished, directory)
