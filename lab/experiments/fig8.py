"""Inversion in the ideal setting: what one watcher learns of one client, and what noise is for.

Four parts. ``ideal``: figure 8 of the paper: two clients take turns, and one of them, or the
broker, looks for the other's model. ``rows``: what one release tells of the rows it was made of.
``repeat``: a person with a single row, who is asked again and again. ``members``: whether a row
that somebody already has was among those that were used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import RenderableType

from accord.task import Task, step_size
from lab.adversary import clipped_mean, honest
from lab.credit import converged, deal, load
from lab.experiments.figures import entries, points
from lab.experiments.frame import Cell, Finished, Outcome
from lab.experiments.inversion_course import (
    SHARDS,
    Part,
    Setting,
    judge,
    ledger,
    shards,
    task_of,
)
from lab.inversion import blind, direction, likeness, match, membership, noise_variance
from lab.setting import auc

NAME = "fig8"
WORDS = "Inversion by one who sees a client's updates: its model, its rows, by epsilon."

EPSILONS: Final = (0.5, 1.0, 2.0, 5.0, None)
"""The paper's; None is no noise."""
ROW_EPSILONS: Final = (0.5, 1.0, 2.0, 5.0, 10.0, None)
BATCHES: Final = (1, 10, 50)
RELEASES: Final = (1, 10, 100, 1000, 4000)
HELD: Final = (10, 50, 500)
"""Rows of a victim whose membership is looked for."""
TRAINING: Final[dict[str, Any]] = {"step": 1.0, "schedule": "constant", "clip": 0.5}
"""For rows: the clip that a task has by default, which fits gradients at weights of 0 exactly."""
BARE: Final = 0.95
"""A cosine at which a row is called found."""
_CANDIDATES: Final = 500


def cells(quick: bool, seeds: int | None) -> list[Cell]:
    """All cells; see the module's first lines for the parts."""
    chosen = range(seeds or (2 if quick else 5))
    return [*_ideal(chosen),
            *_rows(chosen, ("zero",) if quick else ("zero", "trained"), 40 if quick else 60),
            *_repeat(chosen, RELEASES[:4] if quick else RELEASES, 10 if quick else 20),
            *_members(chosen, 5 if quick else 10)]


def _ideal(seeds: Iterable[int]) -> list[Cell]:
    return [{"part": "ideal", "setting": asdict(Setting(
                victim=victim, sends=sends, epsilon=epsilon, seed=seed))}
            for victim in ("flipped", "ordinary", "unlike") for sends in ("zeros", "honest")
            for epsilon in EPSILONS for seed in seeds]


def _rows(seeds: Iterable[int], models: Iterable[str], draws: int) -> list[Cell]:
    return [{"part": "rows", "weights": weights, "batch": batch, "epsilon": epsilon,
             "draws": draws, "training": TRAINING, "seed": seed}
            for weights in models for batch in BATCHES
            for epsilon in ROW_EPSILONS for seed in seeds]


def _repeat(seeds: Iterable[int], releases: Sequence[int], draws: int) -> list[Cell]:
    return [{"part": "repeat", "epsilon": epsilon, "releases": list(releases), "draws": draws,
             "training": TRAINING, "seed": seed} for epsilon in ROW_EPSILONS for seed in seeds]


def _members(seeds: Iterable[int], draws: int) -> list[Cell]:
    return [{"part": "members", "held": held, "batch": 10, "releases": 1000, "epsilon": epsilon,
             "draws": draws, "training": TRAINING, "seed": seed}
            for held in HELD for epsilon in ROW_EPSILONS for seed in seeds]


class _Place:
    """Where rows are looked for: a task, a person to draw rows from, and other people's rows."""

    def __init__(self, cell: Cell, data: Path | None) -> None:
        table = load(data)
        parts = deal(table, 0, cell["seed"])
        self.task: Task = task_of(table, parts, cell["training"])
        self.victim, self.others, *rest = shards(parts.train, "ordinary", cell["seed"])
        self.strangers: Part = rest[0]
        self.epsilon: float | None = cell["epsilon"]
        self.draws: int = cell["draws"]
        self.rng = np.random.default_rng([cell["seed"], 9])

    def draw(self, count: int, of: Part | None = None) -> Part:
        """So many of the victim's rows and labels, or of somebody else's."""
        rows, labels = of or self.victim
        chosen = self.rng.choice(len(labels), size=count, replace=False)
        return rows[chosen], labels[chosen]

    def releases(self, data: Part, batch: int, weights: np.ndarray, count: int) -> np.ndarray:
        """What the real client sends for these weights, so many times, by minus its step size."""
        stepper = honest(self.task, *data, batch, self.epsilon, lambda count: range(1, 2))
        step = step_size(self.task.training, 1)
        return np.array([stepper.update(weights, self.rng).delta.astype(np.float64) / -step
                         for _ in range(count)])


def run(cell: Cell, data: Path | None) -> Outcome:
    """One cell: :func:`lab.experiments.inversion_course.judge`, :func:`one_release`,
    :func:`repeat` or :func:`members`."""
    if cell["part"] == "ideal":
        return judge(load(data), Setting(**cell["setting"]))
    return {"rows": one_release, "repeat": repeat, "members": members}[cell["part"]](
        cell, _Place(cell, data))


def one_release(cell: Cell, place: _Place) -> Outcome:
    """One release of a whole batch, and what can be said of its rows.

    Returns:
        Mean likeness (:func:`lab.inversion.likeness`): ``guess``, the best of those who see
        nothing; ``direction`` and ``match``, of both attacks; ``direction_strangers`` and
        ``match_strangers``, of what the same attacks found with rows that were not in the batch.
        Each of these four with ``_bare``: the share of found rows with more than :data:`BARE`.
    """
    batch, clip = cell["batch"], place.task.training.clip
    public, labels = place.others
    weights = np.zeros(public.shape[1]) if cell["weights"] == "zero" else converged(public, labels)
    variance = noise_variance(len(weights), batch, clip, place.epsilon)
    usual = np.array([clipped_mean(place.task, weights, public[i:i + 1], labels[i:i + 1])
                      for i in range(len(labels))])
    found: dict[str, list[float]] = {}
    blinds: list[list[float]] = []
    for _ in range(place.draws):
        true = place.draw(batch)
        strangers = place.draw(batch, place.strangers)[0]
        release = place.releases(true, batch, weights, 1)[0]
        blinds.append([float(likeness(each[None], true[0])[0])
                       for each in blind(public, place.rng)])
        for name, rebuilt in (
                ("direction", direction(release, batch, variance, usual)[None]),
                ("match", match(release, weights, batch, clip, variance, public, place.rng))):
            for of, like in ((name, likeness(rebuilt, true[0])),
                             (f"{name}_strangers", likeness(rebuilt, strangers))):
                found.setdefault(of, []).append(float(like.mean()))
                found.setdefault(f"{of}_bare", []).append(float((like > BARE).mean()))
    # The best on the whole, not the best each time: nobody sees the truth to choose by it.
    return {"guess": float(np.mean(blinds, axis=0).max()),
            **{name: float(np.mean(values)) for name, values in found.items()}}


def repeat(cell: Cell, place: _Place) -> Outcome:
    """A person with one row, who answers again and again for weights of 0: noise goes away in the
    mean. Returns the mean likeness ``by_releases``, the ``guess``, and the ``ledger`` for each."""
    counts = cell["releases"]
    public, labels = place.others
    dimension, clip = public.shape[1], place.task.training.clip
    weights = np.zeros(dimension)
    usual = (0.5 - labels)[:, None] * public
    variance = noise_variance(dimension, 1, clip, place.epsilon)
    found, blinds = np.zeros(len(counts)), []
    for _ in range(place.draws):
        true = place.draw(1)
        # Without noise the row is always the same.
        many = place.releases(true, 1, weights, 1 if place.epsilon is None else max(counts))
        for i, count in enumerate(counts):
            mean = many[:count].mean(axis=0)
            found[i] += likeness(direction(mean, 1, variance / count, usual)[None], true[0])[0]
        blinds.append([float(likeness(each[None], true[0])[0])
                       for each in blind(public, place.rng)])
    return {"by_releases": [float(value) / place.draws for value in found],
            "guess": float(np.mean(blinds, axis=0).max()),
            "ledger": [ledger(place.epsilon, 1, 1, dimension, count) for count in counts]}


def members(cell: Cell, place: _Place) -> Outcome:
    """Whether a row was used. Returns ``auc``: how often a row that was scores above one that was
    not, 0.5 without seeing anything; and the ``ledger``."""
    dimension = len(place.victim[0][0])
    weights = np.zeros(dimension)
    found = []
    for _ in range(place.draws):
        inside = place.draw(cell["held"])
        outside = place.draw(_CANDIDATES, place.strangers)
        seen = place.releases(inside, cell["batch"], weights, cell["releases"]).mean(axis=0)
        rows, labels = (np.concatenate(both) for both in zip(inside, outside, strict=True))
        scores = membership(seen, weights, rows, labels, place.others)
        found.append(auc(scores, np.arange(len(scores)) < cell["held"]))
    return {"auc": float(np.mean(found)),
            "ledger": ledger(place.epsilon, cell["batch"], cell["held"], dimension,
                             cell["releases"])}


def least_rows(cell: Cell) -> int:
    """Of which 70 % are dealt to :data:`lab.experiments.inversion_course.SHARDS` clients, who hold
    a batch each, or those whose membership is looked for among as many candidates."""
    held = max(cell["held"], _CANDIDATES) if cell["part"] == "members" else entries(cell).get(
        "batch", 1)
    return int(held) * SHARDS * 10 // 7 + SHARDS


def series(finished: Sequence[Finished]) -> Iterable[Sequence[Any]]:
    """Every seed's figures."""
    return points(finished)


def tables(finished: Sequence[Finished]) -> list[RenderableType]:
    """All tables."""
    from lab.experiments import inversion_report

    return inversion_report.tables(finished)


def plots(finished: Sequence[Finished], directory: Path) -> list[Path]:
    """Figure 8, and what a release tells of rows."""
    from lab.experiments import inversion_report

    return inversion_report.plots(finished, directory)
