"""Poisoning: does the validator hold, whom does it wrong, and what does it cost?

Six parts. ``figures``: figures 10 and 11 of the paper, its own validation, and what its section
7.5 says of honest clients besides. ``wide``: attacks by
shares, privacy, sizes and defences, each beside the honest clients alone and beside a model
trained on nothing but the validation rows. ``false-positives``: honest clients only.
``adaptive``: attackers who know the test. ``cost``: what honest clients pay for being judged.
``live``: a few cells in real time, through sockets and puzzles, beside their simulation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import RenderableType

from lab.credit import Parts, converged, load
from lab.experiments.figures import curves, flat
from lab.experiments.frame import Cell, Finished, Outcome
from lab.experiments.statistics import mean
from lab.live import compare
from lab.setting import Config, error_of
from lab.simulation import Simulation, as_data

NAME = "poison"
WORDS = "Poisoned updates against no validator, the paper's, and ours; false alarms; cost."

OFF: Final[dict[str, Any]] = {"test": "none", "screen": "none", "evict": 0}
ROUNDS: Final[dict[str, Any]] = {"test": "rounds", "screen": "none", "evict": 0, "rate": 0.1,
                                 "metric": "error", "threshold": 0.02}
DEFENCES: Final[dict[str, dict[str, Any]]] = {"none": OFF, "rounds": ROUNDS, "sequential": {}}
"""Nothing, the paper's snapshot rounds, and what a task gets that says nothing of validation."""

ATTACKS: Final = ("label-flip", "sign-flip", "noise", "inner-product", "a-little", "sleeper",
                  "rejoiner", "sybil", "skipper")
_ONE_SIZE: Final = ("sybil", "skipper")
"""Attacks of the wide table with the smaller number of clients only."""
SHARES: Final = (0.5, 0.75, 0.875)
EPSILONS: Final = (None, 5.0, 1.0)
SIZES: Final = (8, 24)
THRESHOLDS: Final = (0.005, 0.01, 0.02, 0.05)
SPLITS: Final = ("iid", "one-class", "tenth")
GRID: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
JUDGED: Final = 2000
"""Updates of each client in a run for false positives."""
DRAWS: Final = 20
ABOVE: Final = 0.005
"""The cost is taken at so much error above the optimum."""
_PLAIN: Final = ("label-flip", "sign-flip", "noise")


def goal(attack: str, share: float, epsilon: float | None) -> float:
    """How much error above the clean run is allowed: 0.005 is half a point.

    Label-flip, sign-flip and noise: half a point, and a whole one under the noise of epsilon 1 or
    less; at more than 75 % attackers, and for the attacks that are made to hide, one and two.
    """
    noisy = epsilon is not None and epsilon <= 1
    if attack in _PLAIN and share <= 0.75:
        return 0.01 if noisy else 0.005
    return 0.02 if noisy else 0.01


# -- cells -----------------------------------------------------------------------------------


def cells(quick: bool, seeds: int | None) -> list[Cell]:
    """All cells; see the module's first lines for the parts."""
    return [*_figures(range(seeds or (1 if quick else 5))),
             # One validation set may be lucky or unlucky by points: never just one.
             *_wide(quick, range(seeds or (2 if quick else 5))),
             *_false_positives(quick, range(seeds or (1 if quick else 30))),
             *_adaptive(quick, range(seeds or (1 if quick else 5))),
             *_cost(range(seeds or (2 if quick else 5))),
             *_live(quick)]


def _cell(part: str, names: dict[str, Any], **config: Any) -> Cell:
    """A cell: its part, what tables know it by, and the whole configuration, defaults included."""
    return {"part": part, **names, "config": asdict(Config(**config))}


def _figures(seeds: Iterable[int]) -> list[Cell]:
    settings: list[tuple[str, float, float, float | None, float]] = [
        ("10", share, 0.02, None, 250.0) for share in (0.25, 0.5, 0.75)]
    settings += [("11", 0.5, threshold, None, 250.0) for threshold in THRESHOLDS]
    # What the paper says beside its figures: honest clients alone, the lowest threshold.
    settings += [("7.5", 0.0, THRESHOLDS[0], epsilon, 600.0) for epsilon in (5.0, 1.0)]
    return [
        _cell("figures", {"figure": figure, "share": share, "threshold": threshold},
              attackers=share, attack="label-flip" if share else "none", seconds=seconds,
              epsilon=epsilon, seed=seed, validation={**ROUNDS, "threshold": threshold})
        for figure, share, threshold, epsilon, seconds in settings for seed in seeds]


def _wide(quick: bool, seeds: Iterable[int]) -> list[Cell]:
    seconds = 30.0 if quick else 60.0
    found = []
    for size in SIZES[:1] if quick else SIZES:
        for share in SHARES:
            for epsilon in EPSILONS:
                # What the honest clients get to when they are alone, under each defence.
                for attack in ("none", *ATTACKS):
                    if attack in _ONE_SIZE and size != SIZES[0]:
                        continue
                    found += [
                        _cell("wide", {"attack": attack, "defence": defence}, clients=size,
                              attackers=share, attack=attack, epsilon=epsilon, seconds=seconds,
                              # A sleeper wakes at half time.
                              parameter=seconds * 5 if attack == "sleeper" else None,
                              validation=rules, training=_step(size), seed=seed)
                        for defence, rules in DEFENCES.items() for seed in seeds
                        # With many clients only what is beside the goals: the runs are long.
                        if size == SIZES[0] or defence == "sequential" or (
                            attack == "none" and defence == "none")]
    return found


def _step(size: int) -> dict[str, float]:
    """As many clients' steps as there are clients are added up: the more, the smaller."""
    return {"step": float(np.sqrt(SIZES[0] / size))}


def _false_positives(quick: bool, seeds: Iterable[int]) -> list[Cell]:
    return [
        _cell("false-positives", {}, clients=10, epsilon=epsilon, split=split, seed=seed,
              # A tenth more than the updates take: puzzles are solved in milliseconds.
              most_updates=JUDGED, seconds=0.11 * JUDGED, every=0.11 * JUDGED,
              validation_rows=rows)
        for rows in (100,)
        for epsilon in (0.5, 1.0, 5.0, None) for split in SPLITS for seed in seeds]


def _adaptive(quick: bool, seeds: Iterable[int]) -> list[Cell]:
    seconds = 30.0 if quick else 100.0
    found = []
    for share in (0.5,) if quick else (0.5, 0.75):
        for epsilon in EPSILONS:
            for seed in seeds:
                found.append(_cell(
                    "adaptive", {"opposition": 0.0}, attackers=share, attack="none",
                    epsilon=epsilon, seconds=seconds, seed=seed, validation=OFF))
                found += [_cell("adaptive", {"opposition": part}, attackers=share,
                                attack="adaptive", parameter=part, epsilon=epsilon,
                                seconds=seconds, seed=seed)
                          for part in (GRID[1::2] if quick else GRID)]
    return found


def _cost(seeds: Iterable[int]) -> list[Cell]:
    return [_cell("cost", {"defence": defence}, epsilon=epsilon, seconds=60.0, every=0.25,
                  validation=rules, seed=seed)
            for epsilon in EPSILONS for defence, rules in DEFENCES.items() for seed in seeds]


def _live(quick: bool) -> list[Cell]:
    settings = [("none", 0.0, "sequential"), ("label-flip", 0.5, "sequential")]
    if not quick:
        settings += [("sign-flip", 0.75, "sequential"), ("label-flip", 0.5, "rounds")]
    return [_cell("live", {"attack": attack, "defence": defence}, attackers=share, attack=attack,
                  epsilon=5.0, seconds=10.0 if quick else 60.0, validation=DEFENCES[defence])
            for attack, share, defence in settings]


def run(cell: Cell, data: Path | None) -> Outcome:
    """One simulation, and beside it the errors, on the honest clients' rows, of converged models
    that took no training together: ``validation_alone``, of so many validation rows, the mean of
    :data:`DRAWS` draws of them (one draw may be 18 % or 25 %: that is luck); ``this_validation``,
    of those that the curator really had; ``optimum``, of the honest clients' own rows."""
    if cell["part"] == "live":
        return compare(load(data), Config(**cell["config"]))
    simulation = Simulation(load(data), Config(**cell["config"]))
    told = as_data(simulation.run())
    parts, train = simulation.parts, simulation.train
    told["this_validation"] = error_of(converged(*parts.validation), train)
    told["validation_alone"] = mean([
        error_of(converged(*draw), train) for draw in _draws(parts, cell["config"]["seed"])])
    told["optimum"] = error_of(converged(*train), train)
    if cell["part"] in ("figures", "cost"):
        told["curve"] = [[round(value, 6) for value in point] for point in told["curve"]]
    else:
        del told["curve"]
    return told


def _draws(parts: Parts, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Validation sets that the curator might have had: of the same size, from all that clients do
    not hold."""
    rows, labels = (np.concatenate(both) for both in zip(parts.validation, parts.test, strict=True))
    rng = np.random.default_rng([seed, 4])
    for _ in range(DRAWS):
        chosen = rng.choice(len(labels), size=len(parts.validation[1]), replace=False)
        yield rows[chosen], labels[chosen]


def settles(result: Mapping[str, Any]) -> float:
    """Simulated seconds until the error is at most :data:`ABOVE` the optimum and stays there;
    infinite for never."""
    there = math.inf
    for seconds, error, _ in reversed(result["curve"]):
        if error > result["optimum"] + ABOVE:
            break
        there = float(seconds)
    return there


def least_rows(cell: Cell) -> int:
    """Of which 70 % are a batch for each client, and the others enough to validate with."""
    config = cell["config"]
    return int(max(config["clients"] * config["batch"] * 10 // 7 + 2,
                   config["validation_rows"] * 10 // 3 + 10))


def series(finished: Sequence[Finished]) -> Iterable[Sequence[Any]]:
    """The curves of those parts that have any."""
    return curves(finished, ("seconds", "error", "loss"))


def measures(finished: Finished) -> dict[str, float | None]:
    """The numbers of a result, and :func:`settles` where there is a curve; None for never."""
    told = flat(finished.result)
    if "curve" in finished.result:
        seconds = settles(finished.result)
        told["settles_seconds"] = None if math.isinf(seconds) else seconds
    return told


def tables(finished: Sequence[Finished]) -> list[RenderableType]:
    """All tables."""
    from lab.experiments import poison_report

    return poison_report.tables(finished)


def plots(finished: Sequence[Finished], directory: Path) -> list[Path]:
    """The figures."""
    from lab.experiments import poison_report

    return poison_report.plots(finished, directory)
