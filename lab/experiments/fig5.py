"""Figure 5 of the paper: what epsilon and the batch do to training, for a client alone.

The client holds the whole training shard, as in the paper (section 7.2). The paper's own curve
falls to an error near 0, as its table holds the answer among the features; these are honest
features, on which nothing falls below the converged model's error. Beside each setting is what
the whole run costs: the paper gives the epsilon of one update only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
from rich import box
from rich.console import RenderableType
from rich.table import Table

from accord.task import Training
from client.accounting import epsilon_total
from client.noise import Release
from lab.credit import converged, deal, load
from lab.experiments import drawing
from lab.experiments.alone import loss_error_auc, spaced, train
from lab.experiments.figures import curves
from lab.experiments.frame import Cell, Finished, Outcome

NAME = "fig5"
WORDS = "Loss, error and AUC by epsilon and batch, for one client; and what each run costs."

EPSILONS: Final = (None, 5.0, 1.0, 0.5)
BATCHES: Final = (1, 5, 10, 50, 100)
STEPS: Final = (1.0, 3.0, 0.1)
"""First steps, with the schedule 1/sqrt(t); the first is a task's default."""
WITHIN: Final = 0.005
"""So much error above the converged model's counts as there."""
DELTA: Final = 1e-6
_COLOURS: Final = ("#7d4698", "#c0572b", "#2b7bba", "#3a8f3a", "#555555")


def cells(quick: bool, seeds: int | None) -> list[Cell]:
    """Each epsilon with each batch and each first step."""
    return [{"part": "curves", "epsilon": epsilon, "batch": batch, "step": step,
             "updates": 4_000 if quick else 20_000, "seed": seed}
            for epsilon in EPSILONS for batch in BATCHES
            for step in STEPS
            for seed in range(seeds or (2 if quick else 10))]


def run(cell: Cell, data: Path | None) -> Outcome:
    """One training: ``curve`` of (updates, loss, error, AUC) on the training shard, ``test`` of the
    last model on rows that nobody had, ``optimum`` of the converged model on the shard, ``nothing``
    the error of one answer for all, ``total`` the epsilon of all updates (None: no noise)."""
    table = load(data)
    parts = deal(table, 0, cell["seed"])
    training = Training(step=cell["step"])
    course = train(table.schema, training, parts.train, cell["batch"], cell["epsilon"],
                   spaced(cell["updates"]), [cell["seed"], 5])
    rows, labels = parts.train
    total = None
    if cell["epsilon"] is not None:
        release = Release(cell["epsilon"], cell["batch"], *rows.shape)
        total = epsilon_total({release: cell["updates"]}, DELTA)
    curve = [(t, *loss_error_auc(w, parts.train))
             for t, w in zip(course.updates, course.live, strict=True)]
    return {
        "curve": [[round(value, 6) for value in point] for point in curve],
        "test": loss_error_auc(course.live[-1], parts.test),
        "optimum": loss_error_auc(converged(*parts.train), parts.train),
        "nothing": float(min(labels.mean(), 1 - labels.mean())),
        "total": total,
    }


def arrives(curve: Sequence[Sequence[float]], target: float) -> float:
    """After how many updates the error is at most the target and stays there; infinite for never.

    To have been there once says little: a noisy error comes by everywhere."""
    there = float("inf")
    for t, _, error, _ in reversed(curve):
        if error > target:
            break
        there = t
    return there


def least_rows(cell: Cell) -> int:
    """Of which 70 % are a whole batch."""
    return int(cell["batch"]) * 10 // 7 + 1


def series(finished: Sequence[Finished]) -> Iterable[Sequence[Any]]:
    """The curves."""
    return curves(finished, ("updates", "loss", "error", "auc"))


def measures(finished: Finished) -> dict[str, float | None]:
    """How each training ended; ``there``: :func:`arrives`, None for never."""
    result = finished.result
    _, loss, error, auc = result["curve"][-1]
    there = arrives(result["curve"], result["optimum"][1] + WITHIN)
    return {"loss": loss, "error": error, "auc": auc, "there": None if np.isinf(there) else there,
            "optimum_error": result["optimum"][1], "total_epsilon": result["total"]}


class _Setting:
    """All runs of one epsilon, batch and first step."""

    def __init__(self, group: Sequence[Finished]) -> None:
        self.results = [f.result for f in group]
        self.updates: int = group[0].cell["updates"]
        self.total: float | None = self.results[0]["total"]
        self.loss, self.error, self.auc = (
            median(r["curve"][-1][i] for r in self.results) for i in (1, 2, 3))
        errors = [100 * r["curve"][-1][2] for r in self.results]
        self.spread = f"{min(errors):.1f}–{max(errors):.1f}"
        self.arrives = median(
            arrives(r["curve"], r["optimum"][1] + WITHIN) for r in self.results)


def _settings(finished: Sequence[Finished]) -> dict[tuple[float | None, int, float], _Setting]:
    groups: dict[tuple[float | None, int, float], list[Finished]] = {}
    for f in finished:
        groups.setdefault((f.cell["epsilon"], f.cell["batch"], f.cell["step"]), []).append(f)
    return {key: _Setting(group) for key, group in groups.items()}


def tables(finished: Sequence[Finished]) -> list[RenderableType]:
    """One table: each epsilon and batch with the default step, and with the step that is best."""
    if not finished:
        return []
    optimum = [median(f.result["optimum"][i] for f in finished) for i in range(3)]
    nothing = median(f.result["nothing"] for f in finished)
    settings = _settings(finished)
    updates = finished[0].cell["updates"]
    table = Table(
        title=f"One client, all training rows, {updates:,} updates, step η/√t. At the end: loss, "
              f"error %, AUC on the training rows. 'There': updates until the error is within "
              f"{100 * WITHIN:g} points of the converged model's and stays. 'Costs': epsilon of "
              f"all {updates:,} updates at delta {DELTA:g}. Converged: loss {optimum[0]:.3f}, "
              f"error {100 * optimum[1]:.1f}, AUC {optimum[2]:.3f}; one answer for all: error "
              f"{100 * nothing:.1f}. Medians over {max(len(s.results) for s in settings.values())} "
              "seeds; 'range': the error's least and greatest",
        caption="The paper gives no numbers (section 7.2): faster and more reliable with larger "
                "batches and larger ε; with little of both 'the model itself does not converge'.",
        title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("ε", "batch", "costs", "η", "loss", "error", "range", "AUC", "there",
                   "best η", "loss ", "error ", "AUC ", "there "):
        table.add_column(column, justify="right")
    for epsilon, batch in dict.fromkeys((e, b) for e, b, _ in settings):
        mine = {step: s for (e, b, step), s in settings.items() if (e, b) == (epsilon, batch)}
        first = STEPS[0] if STEPS[0] in mine else max(mine)
        best = min(mine, key=lambda step: (mine[step].loss, step))
        usual = mine[first]
        table.add_row(
            "∞" if epsilon is None else f"{epsilon:g}", str(batch),
            "∞" if usual.total is None else f"{usual.total:.3g}", f"{first:g}", *_told(usual, True),
            f"{best:g}", *_told(mine[best], False))
    return [table]


def _told(setting: _Setting, spread: bool) -> list[str]:
    told = [f"{setting.loss:.3f}", f"{100 * setting.error:.1f}"]
    if spread:
        told.append(setting.spread)
    there = "never" if np.isinf(setting.arrives) else f"{setting.arrives:,.0f}"
    return [*told, f"{setting.auc:.3f}", there]


def plots(finished: Sequence[Finished], directory: Path) -> list[Path]:
    """As figure 5: loss over updates, a panel for each epsilon and a line for each batch, with the
    default step; and the same of the error. Lines are medians, areas ranges over the seeds."""
    chosen = [f for f in finished if f.cell["step"] == STEPS[0]]
    if not chosen:
        return []
    pyplot = drawing.begin()
    epsilons = list(dict.fromkeys(f.cell["epsilon"] for f in chosen))
    written = []
    for column, name, words, limits, scale in (
            (1, "loss", "training loss", (0.4, 1.2), 1),
            (2, "error", "training error, %", (15, 50), 100)):
        picture, panels = pyplot.subplots(
            1, len(epsilons), figsize=(3.4 * len(epsilons), 3.4), sharey=True, squeeze=False)
        for axes, epsilon in zip(panels[0], epsilons, strict=True):
            for colour, batch in zip(_COLOURS, BATCHES, strict=True):
                points = np.array([f.result["curve"] for f in chosen if
                                   (f.cell["epsilon"], f.cell["batch"]) == (epsilon, batch)])
                if not len(points):
                    continue
                values = scale * points[:, :, column]
                axes.plot(points[0, :, 0], np.median(values, axis=0), color=colour,
                          label=f"b = {batch}")
                axes.fill_between(points[0, :, 0], values.min(axis=0), values.max(axis=0),
                                  color=colour, alpha=0.15, linewidth=0)
            axes.axhline(scale * chosen[0].result["optimum"][column - 1], color="black",
                         linewidth=0.7, linestyle=":")
            axes.set(xscale="log", xlabel="updates", ylim=limits,
                     title="no noise" if epsilon is None else f"ε = {epsilon:g} per update")
            axes.spines[["top", "right"]].set_visible(False)
        panels[0][0].set(ylabel=words)
        panels[0][0].legend(frameon=False)
        written += drawing.save(picture, directory, f"figure5-{name}")
    return written
