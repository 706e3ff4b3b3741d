"""What a person sees of the experiment on what a budget buys: tables and a plot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from rich import box
from rich.console import RenderableType
from rich.table import Table

from lab.experiments import drawing
from lab.experiments.frame import Finished
from lab.experiments.statistics import mean

RULES: Final[dict[str, Callable[[int], int]]] = {
    "10 rows (the paper)": lambda n: min(n, 10),
    "50 rows": lambda n: min(n, 50),
    "200 rows": lambda n: min(n, 200),
    "a quarter": lambda n: n // 4,
    "half": lambda n: n // 2,
    "all": lambda n: n,
}
"""Ways to choose the batch for a client of n rows."""
SMALL: Final = (2.0, 1.0, 0.5)
"""Other rules: the smallest batch whose updates have at most so much epsilon each."""
_COLOURS: Final = ("#7d4698", "#c0572b", "#2b7bba", "#3a8f3a", "#555555", "#b59a2e", "#2aa198")


@dataclass(frozen=True, slots=True)
class Way:
    """One way to train, and what came of it on rows that nobody had: means over the seeds.

    Attributes:
        part: "alone", "together" or "clip".
        rows, budget, batch, updates: of its cell. epsilon: of one update.
        schedule, step, clip: of the training.
        loss, error, auc: of the last model. spread: standard deviation of the loss.
        other: loss of the other model there is: the averaged one alone, the published one together.
    """

    part: str
    rows: int
    budget: float
    batch: int
    updates: int
    epsilon: float
    schedule: str
    step: float
    clip: float
    loss: float
    error: float
    auc: float
    spread: float
    other: tuple[float, float, float]

    @property
    def steps(self) -> tuple[str, float]:
        """Schedule and first step."""
        return self.schedule, self.step


def ways(finished: Sequence[Finished]) -> Iterator[Way]:
    """All ways to train that were tried."""
    for f in finished:
        for run in f.result["runs"]:
            loss, error, auc = (mean([seed[i] for seed in run["last"]]) for i in range(3))
            others = run["averaged" if run["who"] == "alone" else "published"]
            yield Way(
                part=f.cell["part"], rows=f.cell["rows"], budget=f.cell["budget"],
                batch=f.cell["batch"], updates=f.cell["updates"], epsilon=f.result["epsilon"],
                schedule=run["schedule"], step=run["step"], clip=run.get("clip", 0.5),
                loss=loss, error=error, auc=auc,
                spread=float(np.std([seed[0] for seed in run["last"]])),
                other=(mean([s[0] for s in others]), mean([s[1] for s in others]),
                       mean([s[2] for s in others])))


def tables(finished: Sequence[Finished]) -> list[RenderableType]:
    """All tables, those without cells left out."""
    found = list(ways(finished))
    made: list[RenderableType] = []
    for part, words in (("alone", "a client alone"), ("together", "8 clients and a broker")):
        mine = [w for w in found if w.part == part]
        if mine:
            made += [_best(mine, finished, words), _batches(mine, words), _rules(mine, words),
                     _steps(mine, words), _others(mine, words)]
    clips = [w for w in found if w.part == "clip"]
    if clips:
        made.append(_clips(clips))
    prices = [f for f in finished if f.cell["part"] == "price"]
    if prices:
        made.append(_prices(prices))
    return made


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def _loss(way: Way) -> float:
    return way.loss


def _settings(found: Sequence[Way]) -> list[tuple[int, float]]:
    return sorted({(w.rows, w.budget) for w in found})


def _best(found: Sequence[Way], finished: Sequence[Finished], words: str) -> Table:
    """The best way of all for each budget and number of rows."""
    table = _table(
        f"The best that a budget buys, {words}: the way with the lowest loss (mean of the seeds, "
        "on rows that nobody had; picked on these same rows)",
        "rows", "budget", "batch", "updates", "ε each", "schedule", "η", "loss", "± seeds",
        "error %", "AUC", "without privacy", "nothing")
    for rows, budget in _settings(found):
        best = min((w for w in found if (w.rows, w.budget) == (rows, budget)), key=_loss)
        limits = next(f.result["limits"] for f in finished if f.result["limits"] and
                      (f.cell["part"], f.cell["rows"]) == (best.part, rows))
        limit = limits[best.part]
        table.add_row(
            f"{rows:,}", f"{budget:g}", str(best.batch), f"{best.updates:,}",
            f"{best.epsilon:.3g}", best.schedule, f"{best.step:g}", f"{best.loss:.4f}",
            f"{best.spread:.4f}", f"{100 * best.error:.1f}", f"{best.auc:.3f}",
            f"{limit[0]:.4f} {100 * limit[1]:.1f} {limit[2]:.3f}",
            f"{100 * limits['nothing']:.1f}")
    return table


def _batches(found: Sequence[Way], words: str) -> Table:
    """Loss by batch for each number of updates, each with its best step."""
    names = list(RULES)
    table = _table(f"Loss by batch at the same total and number of updates, {words}, each with its "
                   "best schedule and step (in brackets: ε of one update)",
                   "rows", "budget", "updates", *names)
    for rows, budget in _settings(found):
        mine = [w for w in found if (w.rows, w.budget) == (rows, budget)]
        for updates in sorted({w.updates for w in mine}):
            cells = []
            for name in names:
                some = [w for w in mine if (w.updates, w.batch) == (updates, RULES[name](rows))]
                best = min(some, key=_loss, default=None)
                cells.append("-" if best is None else f"{best.loss:.4f} ({best.epsilon:.2g})")
            if len([cell for cell in cells if cell != "-"]) > 1:
                table.add_row(f"{rows:,}", f"{budget:g}", f"{updates:,}", *cells)
    return table


def _over(found: Sequence[Way], candidate: Callable[[Way], bool]) -> list[float]:
    """Loss of the best among the candidates above the best of all, wherever rows, budget and
    number of updates are the same and there is a candidate."""
    over = []
    for key in {(w.rows, w.budget, w.updates) for w in found}:
        some = [w for w in found if (w.rows, w.budget, w.updates) == key]
        mine = [w.loss for w in some if candidate(w)]
        if mine:
            over.append(min(mine) - min(map(_loss, some)))
    return over


def _rules(found: Sequence[Way], words: str) -> Table:
    """How much each rule for the batch loses against the best batch."""
    table = _table(f"Rules for the batch, {words}: loss above the best batch's, at the same total "
                   "and number of updates, each with its best step",
                   "batch", "settings", "mean", "worst")
    for name, rule in RULES.items():
        over = _over(found, lambda w, rule=rule: w.batch == rule(w.rows))  # type: ignore[misc]
        if over:
            table.add_row(name, str(len(over)), f"{mean(over):.4f}", f"{max(over):.4f}")
    for most in SMALL:
        least = _least(found, most)
        over = _over(found, lambda w, least=least:  # type: ignore[misc]
                     w.batch == least[w.rows, w.budget, w.updates])
        table.add_row(f"the smallest with ε ≤ {most:g} an update", str(len(over)),
                      f"{mean(over):.4f}", f"{max(over):.4f}")
    return table


def _least(found: Sequence[Way], most: float) -> dict[tuple[int, float, int], int]:
    """The smallest batch that was tried whose updates have at most this epsilon each, else the
    largest one: by rows, budget and number of updates."""
    chosen: dict[tuple[int, float, int], int] = {}
    for w in sorted(found, key=lambda way: -way.batch):
        key = (w.rows, w.budget, w.updates)
        # From the largest down: the larger the batch, the less each update may have.
        if key not in chosen or w.epsilon <= most:
            chosen[key] = w.batch
    return chosen


def _steps(found: Sequence[Way], words: str) -> Table:
    """How much one step for all loses, with the batch of all rows."""
    whole = [w for w in found if w.batch == w.rows]
    updates = sorted({w.updates for w in whole})
    table = _table(f"One first step for all, {words}, batches of all rows: mean loss above the "
                   "best step's, by number of updates", "schedule", "η", "all", "worst",
                   *(f"{t:,}" for t in updates))
    for steps in dict.fromkeys(w.steps for w in whole):
        def over(some: Sequence[Way], steps: tuple[str, float] = steps) -> list[float]:
            return _over(some, lambda way: way.steps == steps)

        table.add_row(
            steps[0], f"{steps[1]:g}", f"{mean(over(whole)):.4f}", f"{max(over(whole)):.4f}",
            *(f"{mean(over([w for w in whole if w.updates == t])):.4f}" for t in updates))
    return table


def _others(found: Sequence[Way], words: str) -> Table:
    """The other model against the last one: at each step, and each with its own best step."""
    alone = found[0].part == "alone"
    name = "the average" if alone else "what is published now (lowest validation loss)"
    table = _table(f"By how much {name} differs from the last model, {words}: a loss above 0 is "
                   "worse than the last model's",
                   "schedule", "η", "settings", "loss", "error, points", "AUC")
    for steps in dict.fromkeys(w.steps for w in found):
        mine = [w for w in found if w.steps == steps]
        table.add_row(
            steps[0], f"{steps[1]:g}", str(len(mine)),
            f"{mean([w.other[0] - w.loss for w in mine]):+.4f}",
            f"{100 * mean([w.other[1] - w.error for w in mine]):+.2f}",
            f"{mean([w.other[2] - w.auc for w in mine]):+.4f}")
    groups: dict[tuple[int, float, int, int], list[Way]] = {}
    for w in found:
        groups.setdefault((w.rows, w.budget, w.updates, w.batch), []).append(w)
    by = mean([min(w.other[0] for w in some) - min(map(_loss, some)) for some in groups.values()])
    table.add_row("best of each", "", str(len(groups)), f"{by:+.4f}", "", "")
    return table


def _clips(found: Sequence[Way]) -> Table:
    """Loss by clip, each with its best step."""
    clips = sorted({w.clip for w in found})
    table = _table("Loss by clip, a client alone, batches of all rows, each with its best step of "
                   "1/sqrt(t)", "rows", "budget", "updates", *(f"{c:g}" for c in clips))
    for rows, budget, updates in sorted({(w.rows, w.budget, w.updates) for w in found}):
        cells = [min((w for w in found if (w.rows, w.budget, w.updates, w.clip) ==
                      (rows, budget, updates, c)), key=_loss) for c in clips]
        table.add_row(f"{rows:,}", f"{budget:g}", f"{updates:,}",
                      *(f"{w.loss:.4f} (η {w.step:g})" for w in cells))
    return table


def _prices(finished: Sequence[Finished]) -> Table:
    """Epsilon of one update, and the noise that this makes, for both kinds of noise."""
    table = _table(
        "What one update may cost so that all of them stay within the budget, and its noise: root "
        "mean square length over the longest that the mean gradient can be; 'over √T': divided "
        "by the square root of their number; where that is level, only the total counts",
        "rows", "budget", "updates", "batch", "ε Laplace", "ε Gaussian", "noise Laplace",
        "noise Gaussian", "Laplace over √T")
    found = {(f.cell["rows"], f.cell["budget"], f.cell["updates"], f.cell["batch"],
              f.cell["mechanism"]): f.result for f in finished}
    for key in dict.fromkeys(k[:4] for k in found):
        laplace, gaussian = (found.get((*key, name)) for name in ("laplace", "gaussian"))
        rows, budget, updates, batch = key

        def say(result: dict[str, float | None] | None, name: str, over: float = 1.0) -> str:
            value = None if result is None else result[name]
            return "-" if value is None else f"{value / over:.3g}"

        table.add_row(
            f"{rows:,}", f"{budget:g}", f"{updates:,}", str(batch), say(laplace, "epsilon"),
            say(gaussian, "epsilon"), say(laplace, "noise"), say(gaussian, "noise"),
            say(laplace, "noise", updates**0.5))
    return table


# -- the plot --------------------------------------------------------------------------------


def plots(finished: Sequence[Finished], directory: Path) -> list[Path]:
    """Loss by number of updates, a line for each batch, each with its best step: one picture for
    each part and number of rows, with a panel for each budget."""
    found = [w for w in ways(finished) if w.part != "clip"]
    if not found:
        return []
    pyplot = drawing.begin()
    written = []
    for part, rows in sorted({(w.part, w.rows) for w in found}):
        mine = [w for w in found if (w.part, w.rows) == (part, rows)]
        budgets = sorted({w.budget for w in mine})
        picture, panels = pyplot.subplots(
            1, len(budgets), figsize=(3.4 * len(budgets), 3.4), sharey=True, squeeze=False)
        for axes, budget in zip(panels[0], budgets, strict=True):
            for colour, batch in zip(_COLOURS, sorted({w.batch for w in mine}), strict=False):
                best: dict[int, float] = {}
                for w in mine:
                    if (w.budget, w.batch) == (budget, batch):
                        best[w.updates] = min(w.loss, best.get(w.updates, np.inf))
                axes.plot(sorted(best), [best[t] for t in sorted(best)], color=colour, marker=".",
                          label=f"b = {batch}")
            axes.set(xscale="log", xlabel="updates of each client", ylim=(0.44, 0.72),
                     title=f"ε = {budget:g} in all")
            axes.spines[["top", "right"]].set_visible(False)
        panels[0][0].set(ylabel="loss on rows that nobody had")
        panels[0][-1].legend(frameon=False, fontsize="small")
        picture.suptitle(f"{rows:,} rows a client, {part}")
        written += drawing.save(picture, directory, f"utility-{part}-{rows}")
    return written
