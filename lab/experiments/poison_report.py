"""What a person sees of the experiment on poisoning: tables and plots."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
from rich import box
from rich.console import RenderableType
from rich.table import Table

from lab.experiments import drawing
from lab.experiments.frame import Finished
from lab.experiments.poison import ABOVE, ATTACKS, DEFENCES, GRID, goal, settles
from lab.experiments.statistics import mean, upper_bound
from lab.live import COURSES, TOLERANCE

_CAUGHT = 0.05
"""An adaptive attacker is 'not struck' when at most this share of them is."""
_LEARNT = 20.0
"""Seconds after which a model is no longer poor because it has just begun."""
_COLOURS = ("#7d4698", "#c0572b", "#2b7bba", "#3a8f3a", "#555555")

Groups = dict[Any, list[Finished]]
"""Cells by what they have in common."""


def tables(finished: Sequence[Finished]) -> list[RenderableType]:
    """All tables, those without cells left out."""
    parts: Groups = _group(finished, lambda f: f.cell["part"])
    makers: Mapping[str, Callable[[list[Finished]], list[RenderableType]]] = {
        "figures": _figures, "wide": _wide, "false-positives": _false_positives,
        "adaptive": _adaptive, "cost": _cost, "live": _live}
    return [table for part, maker in makers.items() if parts.get(part)
            for table in maker(parts[part])]


def _group(finished: Iterable[Finished], key: Callable[[Finished], Hashable]) -> Groups:
    groups: Groups = defaultdict(list)
    for each in finished:
        groups[key(each)].append(each)
    return groups


def _by(*names: str) -> Callable[[Finished], Hashable]:
    """Groups cells by these entries of the cell, or else of its configuration."""
    return lambda f: tuple(f.cell[n] if n in f.cell else f.cell["config"][n] for n in names)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _mean(group: Iterable[Finished], name: str) -> float:
    return mean([float(f.result[name]) for f in group])


def _median(values: Iterable[float]) -> float:
    """NaN of nothing, which is below, above and equal to nothing."""
    return median(found) if (found := list(values)) else math.nan


def _epsilon(value: float | None) -> str:
    return "∞" if value is None else f"{value:g}"


def _struck(group: Sequence[Finished], who: str) -> float:
    """The share of honest clients, or of attackers, that were given a strike; NaN of none."""
    of = sum(f.result["honest" if who == "honest" else "attackers"] for f in group)
    return sum(f.result[f"{who}_struck"] for f in group) / of if of else math.nan


def _after(group: Iterable[Finished]) -> str:
    counts = [n for f in group for n in f.result["struck_after"]]
    return f"{median(counts):.0f}" if counts else "-"


# -- the parts ---------------------------------------------------------------------------------


_PAPER: Final = {
    ("10", 0.25, 0.02): "converges, slower",
    ("10", 0.5, 0.02): "led astray, held off within 30 s, converges",
    ("10", 0.75, 0.02): "compromised within 20 s, struggles to recover",
    ("11", 0.5, 0.005): "poor at first: honest clients are struck",
    ("7.5", 5.0): "there after 480 s",
    ("7.5", 1.0): "all honest clients struck, never there",
}
"""In its words (7.5), by figure, share and threshold, or epsilon: it gives no other figures."""


def _figures(finished: list[Finished]) -> list[RenderableType]:
    table = _table(
        "Figures 10 and 11 of the paper, and the two runs of honest clients in its section 7.5: "
        "its own validation (rounds, rate 0.1), 8 clients, 250 simulated seconds (7.5: 600); "
        "label-flippers. Medians of the seeds, and the final error's range; 'astray': the greatest "
        f"error from second 20 on; 'there': seconds until the error is within {100 * ABOVE:g} "
        "points of the optimum and stays",
        "figure", "poisoners %", "threshold %", "ε", "final error %", "range", "astray %", "there",
        "honest struck %", "poisoners struck %", "after updates", "the paper found")
    groups = _group(finished, _by("figure", "share", "threshold", "epsilon"))
    for (figure, share, threshold, epsilon), group in groups.items():
        errors = [f.result["error"] for f in group]
        there = median(settles(f.result) for f in group)
        table.add_row(
            figure, f"{100 * share:g}", f"{100 * threshold:g}", _epsilon(epsilon),
            _percent(median(errors)), f"{_percent(min(errors))}–{_percent(max(errors))}",
            _percent(_median(_astray(f) for f in group)),
            "never" if math.isinf(there) else f"{there:.0f}",
            _percent(_struck(group, "honest")), _percent(_struck(group, "attackers")),
            _after(group), _PAPER.get((figure, share, threshold), "") if figure != "7.5"
            else _PAPER.get((figure, epsilon), ""))
    return [table]


def _astray(f: Finished) -> float:
    return max((error for seconds, error, _ in f.result["curve"] if seconds >= _LEARNT),
               default=math.nan)


class _Row:
    """One row of the wide table: one setting, by defence, beside the clean runs."""

    def __init__(self, setting: tuple[int, float, float | None], attack: str,
                 all_of: Groups) -> None:
        self.size, self.share, self.epsilon = setting
        self.attack = attack
        self.groups = {name: all_of.get((setting, attack, name), []) for name in DEFENCES}
        clean = all_of.get((setting, "none", "none"), [])
        self.clean = {f.cell["config"]["seed"]: f.result["error"] for f in clean}
        self.alone = {f.cell["config"]["seed"]: f.result["validation_alone"] for f in clean}
        self.allowed = goal(attack, self.share, self.epsilon)

    def over(self, defence: str) -> list[float]:
        """Error above the clean run of the same seed."""
        return [f.result["error"] - self.clean.get(f.cell["config"]["seed"], math.nan)
                for f in self.groups[defence]]

    def middle(self, defence: str) -> float:
        """The final error, median of the seeds."""
        return _median([f.result["error"] for f in self.groups[defence]])

    def above(self, defence: str) -> float:
        """By how much that is above the clean run's."""
        return self.middle(defence) - _median(self.clean.values())

    def meets(self, defence: str) -> bool:
        """Whether it is within the goal."""
        # Rounded as it is printed: what reads 0.50 meets 0.5.
        return round(self.above(defence), 4) <= self.allowed

    def beats_alone(self, defence: str) -> bool:
        """Whether training together was worth it: better than the validation rows alone."""
        return self.middle(defence) < _median(self.alone.values())


def _wide(finished: list[Finished]) -> list[RenderableType]:
    def setting(f: Finished) -> tuple[int, float, float | None]:
        config = f.cell["config"]
        return config["clients"], config["attackers"], config["epsilon"]

    all_of = _group(finished, lambda f: (setting(f), f.cell["attack"], f.cell["defence"]))
    settings = sorted({setting(f) for f in finished},
                      key=lambda s: (s[0], s[1], -(s[2] or math.inf)))
    rows = [_Row(s, attack, all_of) for s in settings for attack in ("none", *ATTACKS)
            if any((s, attack, name) in all_of for name in DEFENCES)]
    rows = [row for row in rows if row.clean]
    return [_summary(rows), _rows(rows)]


def _summary(rows: Sequence[_Row]) -> Table:
    names = list(DEFENCES)
    table = _table("In how many settings the model is within its goal / better than the "
                   "validation rows alone", "attack", *names)
    for attack in ("none", *ATTACKS):
        mine = [row for row in rows if row.attack == attack]
        if mine:
            table.add_row(attack if attack != "none" else "nobody attacks", *(
                f"{sum(row.meets(name) for row in mine)} / "
                f"{sum(row.beats_alone(name) for row in mine)} of "
                f"{sum(bool(row.groups[name]) for row in mine)}" for name in names))
    return table


def _rows(rows: Sequence[_Row]) -> Table:
    names = list(DEFENCES)
    table = _table(
        "Final training error in % (median of the seeds), by defence; in brackets points above the "
        "clean run's median, and above it in the worst seed; + within the goal, ! not better than "
        "the validation rows alone",
        "attack", "clients", "share %", "ε", "clean", "val. alone", "goal", *names,
        "honest struck %", "attackers struck %", "after")
    for row in rows:
        cells = []
        for name in names:
            over = row.over(name)
            if not over:
                cells.append("-")
                continue
            marks = ("+" if row.meets(name) else " ") + ("" if row.beats_alone(name) else "!")
            cells.append(f"{_percent(row.middle(name))} "
                         f"({100 * row.above(name):+.2f} {100 * max(over):+.2f}){marks}")
        ours = row.groups["sequential"]
        table.add_row(
            row.attack, str(row.size), f"{100 * row.share:g}", _epsilon(row.epsilon),
            _percent(_median(row.clean.values())), _percent(_median(row.alone.values())),
            f"{100 * row.allowed:.1f}", *cells, _percent(_struck(ours, "honest")),
            _percent(_struck(ours, "attackers")), _after(ours))
    return table


def _false_positives(finished: list[Finished]) -> list[RenderableType]:
    table = _table(
        "Honest clients only, 2,000 updates each, the sequential test: who is struck. The bound "
        "is Clopper and Pearson's, one-sided, 95 %, as if clients of one run were independent",
        "rows held", "validation rows", "ε", "clients", "struck", "struck %", "bound %",
        "put out", "final error %")
    for key, group in _group(
            finished, _by("split", "validation_rows", "epsilon")).items():
        split, rows, epsilon = key
        trials = sum(f.result["honest"] for f in group)
        struck = sum(f.result["honest_struck"] for f in group)
        table.add_row(split, str(rows), _epsilon(epsilon), str(trials), str(struck),
                      _percent(struck / trials), _percent(upper_bound(struck, trials)),
                      str(sum(f.result["honest_evicted"] for f in group)),
                      _percent(_mean(group, "error")))
    return [table]


def _adaptive(finished: list[Finished]) -> list[RenderableType]:
    """Each grid point, and the strongest opposition of which at most :data:`_CAUGHT` is struck."""
    table = _table("Attackers who know the sequential test and oppose by a share of each update: "
                   "final error above the clean run, in points (struck %)",
                   "poisoners %", "ε", "clean %", *(f"{part:g}" for part in GRID),
                   "strongest not struck", "costs", "worst")
    for key, group in _group(finished, _by("attackers", "epsilon")).items():
        share, epsilon = key
        by_part = _group(group, lambda f: f.cell["opposition"])
        clean = {f.cell["config"]["seed"]: f.result["error"] for f in by_part.pop(0.0, [])}
        over = {part: mean([f.result["error"] - clean.get(f.cell["config"]["seed"], math.nan)
                            for f in some]) for part, some in by_part.items()}
        struck = {part: _struck(some, "attackers") for part, some in by_part.items()}
        free = [part for part in struck if struck[part] <= _CAUGHT]
        strongest = max(free, default=None)
        table.add_row(
            f"{100 * share:g}", _epsilon(epsilon), _percent(mean(list(clean.values()))),
            *(f"{100 * over[part]:+.1f} ({100 * struck[part]:.0f})" if part in over else "-"
              for part in GRID),
            "-" if strongest is None else f"{strongest:g}",
            "-" if strongest is None else f"{100 * over[strongest]:+.1f}",
            f"{100 * max(over.values(), default=math.nan):+.1f}")
    return [table]


def seconds_to(result: Mapping[str, Any], target: float) -> float:
    """Simulated seconds until the error was first at most the target; infinite for never."""
    return next((when for when, error, _ in result["curve"] if error <= target), math.inf)


def _cost(finished: list[Finished]) -> list[RenderableType]:
    table = _table(
        f"What honest clients pay: 8 clients, nobody attacks, to {100 * ABOVE:g} points above "
        "the optimum (median of the seeds)",
        "defence", "ε", "seconds", "applied of 60 s", "not applied %", "broker µs an update",
        "final error %")
    for key, group in _group(finished, _by("defence", "epsilon")).items():
        defence, epsilon = key
        times = [seconds_to(f.result, f.result["optimum"] + ABOVE) for f in group]
        sent = sum(f.result["honest_updates"] for f in group)
        applied = sum(f.result["applied"] for f in group)
        table.add_row(
            defence, _epsilon(epsilon),
            "never" if math.isinf(median(times)) else f"{median(times):.1f}",
            f"{applied / len(group):.0f}", _percent(1 - applied / sent if sent else math.nan),
            f"{1e6 * sum(f.result['broker_seconds'] for f in group) / max(1, sent):.0f}",
            _percent(_mean(group, "error")))
    return [table]


def _live(finished: list[Finished]) -> list[RenderableType]:
    table = _table(
        f"Real time (sockets, puzzles, a database) beside simulated time; the tolerance is "
        f"{100 * TOLERANCE:g} point outside of the range of {COURSES} simulations",
        "attack", "share %", "defence", "real error %", "simulated %", "within",
        "updates real / sim.", "attackers struck", "honest struck")
    for f in finished:
        told = f.result
        table.add_row(
            f.cell["attack"], f"{100 * f.cell['config']['attackers']:g}", f.cell["defence"],
            _percent(told["live_error"]),
            f"{_percent(min(told['simulated_errors']))} to "
            f"{_percent(max(told['simulated_errors']))}",
            "yes" if told["within"] else "NO", *(
                f"{told[f'live_{name}']} / {told[f'simulated_{name}']}"
                for name in ("honest_updates", "attackers_struck", "honest_struck")))
    return [table]


# -- plots -------------------------------------------------------------------------------------


def plots(finished: Sequence[Finished], directory: Path) -> list[Path]:
    """Figures 10 and 11: training error over time, median and range of the seeds."""
    cells = [f for f in finished if f.cell["part"] == "figures"]
    written = []
    for figure, name, words, fixed in (
            ("10", "share", "{:.0%} poisoners", "threshold 2 %"),
            ("11", "threshold", "threshold {:.1%}", "50 % poisoners")):
        mine = _group((f for f in cells if f.cell["figure"] == figure), _by(name))
        if not mine:
            continue
        picture, axes = drawing.begin().subplots(figsize=(7, 4))
        for colour, ((value,), group) in zip(_COLOURS, mine.items(), strict=False):
            curves = np.array([[point[1] for point in drawing.drawn(f.result["curve"])]
                               for f in group])
            seconds = [point[0] for point in drawing.drawn(group[0].result["curve"])]
            axes.plot(seconds, 100 * np.median(curves, axis=0), color=colour,
                      label=words.format(value))
            axes.fill_between(seconds, 100 * curves.min(axis=0), 100 * curves.max(axis=0),
                              color=colour, alpha=0.15, linewidth=0)
        axes.set(xlabel="simulated seconds", ylabel="training error, %", ylim=(0, 100),
                 title=f"As figure {figure} of the paper: {fixed}, the paper's validation")
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        written += drawing.save(picture, directory, f"figure{figure}")
    return written
