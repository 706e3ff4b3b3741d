"""The figures of finished cells: medians and spread over the seeds, and the raw series."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any, Final

from lab.experiments.frame import Cell, Finished, HasMeasures

SEED: Final = "seed"


def entries(cell: Cell) -> dict[str, Any]:
    """A cell's entries, and those of the configuration that it holds, on one level; its own come
    first, and hide those of the same name."""
    own = {name: value for name, value in cell.items() if not isinstance(value, dict)}
    held = {name: value for nested in cell.values() if isinstance(nested, dict)
            for name, value in nested.items() if name not in own}
    return own | held


def varying(cells: Sequence[Cell]) -> list[str]:
    """The entries in which cells differ, ``part`` in any case, the seed last: their names."""
    flat = [entries(cell) for cell in cells]
    names = dict.fromkeys(name for each in flat for name in each)
    found = [name for name in names if name == "part" or len(
        {json.dumps(each.get(name), sort_keys=True) for each in flat}) > 1]
    return sorted(found, key=lambda name: name == SEED)


def flat(result: Mapping[str, Any], prefix: str = "") -> dict[str, float | None]:
    """The numbers of a result, those in dictionaries under names with dots; lists and text are
    left out. None stays: it is what never came, or has no bound."""
    told: dict[str, float | None] = {}
    for name, value in result.items():
        if isinstance(value, dict):
            told |= flat(value, f"{prefix}{name}.")
        elif value is None or isinstance(value, int | float):
            told[prefix + name] = None if value is None else float(value)
    return told


def middle(values: Sequence[float | None]) -> list[float | None]:
    """Median, least and greatest; None counts as more than any number, and so may each of them
    be. Four digits each."""
    ordered = sorted(math.inf if value is None else value for value in values)
    return [None if math.isinf(value) else float(f"{value:.4g}")
            for value in (median(ordered), ordered[0], ordered[-1])]


def summary(experiment: object, finished: Sequence[Finished]) -> list[dict[str, Any]]:
    """One entry for each setting: what tells it from others (``cell``), how many ``seeds`` it was
    run with, and ``figures``: median, least and greatest over the seeds, of each number that there
    is. Where an experiment says what its figures are (:class:`HasMeasures`), those."""
    names = [name for name in varying([f.cell for f in finished]) if name != SEED]
    groups: dict[str, list[Finished]] = {}
    for f in finished:
        cell = entries(f.cell)
        key = json.dumps({name: cell[name] for name in names if name in cell})
        groups.setdefault(key, []).append(f)
    told = []
    for key, group in groups.items():
        numbers = [experiment.measures(f) if isinstance(experiment, HasMeasures)
                   else flat(f.result) for f in group]
        measures = dict.fromkeys(name for each in numbers for name in each)
        told.append({
            "cell": json.loads(key), "seeds": len(group),
            "figures": {name: middle([each[name] for each in numbers if name in each])
                        for name in measures}})
    return told


def points(finished: Sequence[Finished]) -> Iterator[Sequence[Any]]:
    """Every number of every cell, where there are no curves, as rows of a table: the header first;
    then the entries in which the cells differ, and the name and value of one figure."""
    names = varying([f.cell for f in finished])
    yield [*names, "figure", "value"]
    for f in finished:
        cell = entries(f.cell)
        for name, value in flat(f.result).items():
            yield [*(cell.get(each) for each in names), name, value]


def curves(
    finished: Sequence[Finished], columns: Sequence[str], of: str = "curve"
) -> Iterator[Sequence[Any]]:
    """The curves of all cells that have one, as rows of a table: the header first; then for each
    point the entries in which the cells differ, and the point.

    Args:
        finished: cells whose results may have a list of points.
        columns: what a point consists of.
        of: the name of the list in a result.
    """
    mine = [f for f in finished if f.result.get(of)]
    names = varying([f.cell for f in mine])
    yield [*names, *columns]
    for f in mine:
        cell = entries(f.cell)
        for point in f.result[of]:
            yield [*(cell.get(name) for name in names), *point]
