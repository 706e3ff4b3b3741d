"""Hashes a second of the fastest solver that is here, held against the hashlib loop, same core.

Both search for what is never found (64 zeros) of a lock as long as those at the door, by the way
that a client takes (:mod:`accord.solver`), in turns on one core; the ratio is the median of the
turns' ratios.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from accord import puzzle
from accord.solver import STRETCH, Solver
from lab.bench.table import Measured

LOCK: Final = bytes(range(41))
"""As long as the lock of an admission puzzle."""
_NEVER: Final = 64


def measure(quick: bool) -> Measured:
    """The ratio of hashes a second: the solver's over the hashlib loop's.

    Returns:
        ``ratio`` and ``how``; ``ours`` and ``hashlib``, median hashes a second; ``solver``, which
        it was; ``load_seconds``, what it took once to load.
    """
    turns, seconds = (5, 0.2) if quick else (15, 0.5)
    with _one_core() as core:
        solver = Solver()
        began = time.perf_counter()
        first = solver.stretch(LOCK, _NEVER, 0)
        loading = time.perf_counter() - began - first.seconds
        name, _ = _ours(solver, seconds)  # until its stretches are as long as they will be
        pairs = [(_ours(solver, seconds)[1], _hashlib(seconds)) for _ in range(turns)]
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    where = "pinned to one core" if core is not None else "not pinned: this system cannot"
    return {
        "ratio": statistics.median(a / b for a, b in pairs), "ours": ours, "hashlib": theirs,
        "solver": name, "load_seconds": loading,
        "how": f"{turns} turns of {seconds:g} s each, {where}; ours is the {name} solver"
               f"{f' ({solver.why_not})' if solver.why_not else ''}, the other "
               "accord.puzzle.search: hashlib, the lock hashed once and copied for each try.",
    }


def _ours(solver: Solver, least: float) -> tuple[str, float]:
    """Which solver it is, and hashes a second over so many seconds."""
    tried, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < least:
        part = solver.stretch(LOCK, _NEVER, tried)
        tried += part.count
    return part.name, tried / spent


def _hashlib(least: float) -> float:
    tried, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < least:
        puzzle.search(LOCK, _NEVER, tried, STRETCH)
        tried += STRETCH
    return tried / spent


@contextmanager
def _one_core() -> Iterator[int | None]:
    """Keep this thread on one core while the body runs; gives which, or None where none can."""
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    before = os.sched_getaffinity(0)
    core = max(before)
    os.sched_setaffinity(0, {core})
    try:
        yield core
    finally:
        os.sched_setaffinity(0, before)
