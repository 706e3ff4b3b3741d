"""One round of RONI, held against the one matrix product that it cannot do without."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Final

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from accord.objective import OBJECTIVES
from accord.task import Validation
from broker.rounds import Rounds
from broker.verdict import Update
from lab.bench.table import Measured, spread
from lab.demo import Failed

CLIENTS: Final = 200
ROWS: Final = 9000
FEATURES: Final = 24
REPEATS: Final = 51


def measure(quick: bool) -> Measured:
    """A judged round, whole (begin, every answer judged, scored), by the share misclassified.

    The product is of the same shapes (models and snapshot times all rows) and into an array that
    is there already, which is its best. The two take turns, and medians are compared.
    """
    return compare(CLIENTS, ROWS, FEATURES, 11 if quick else REPEATS)


def compare(clients: int, rows: int, features: int, repeats: int) -> Measured:
    """The same in any shape.

    Args:
        clients: answers in the round.
        rows: of the validation set. features: numbers in each, the constant included.
        repeats: of each side.
    """
    rng = np.random.default_rng(11)
    table = rng.standard_normal((rows, features))
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    labels = (rng.random(rows) < 0.22).astype(np.float64)
    live = rng.standard_normal(features)
    steps = [0.01 * rng.standard_normal(features) for _ in range(clients)]
    names = [number.to_bytes(2, "big") for number in range(clients)]
    # A threshold that nobody reaches, so that each round is like the last.
    rules = Validation(test="rounds", metric="error", rate=1.0, threshold=1e9)
    rounds = Rounds(OBJECTIVES["logistic"], table, labels, rules)
    models = np.vstack([live, *(live + step for step in steps)])
    turned = np.ascontiguousarray(table.T)
    product = np.empty((len(models), rows))

    def ours() -> None:
        rounds.begin(live, clients, 0.0)
        sent = rounds.snapshot
        for name, step in zip(names, steps, strict=True):
            rounds.judge(Update(name, sent, step, step, step), live)

    def blas() -> None:
        np.matmul(models, turned, out=product)

    # However many threads the surroundings allow: one for both.
    with threadpool_limits(1, "blas"):
        both = take_turns([ours, blas], repeats)
    if not any(rounds.evidence(name) for name in names):
        raise Failed("no round was scored")
    mine, least = (statistics.median(times) for times in both)
    return {
        "ratio": mine / least,
        "how": f"A judged round through broker.rounds.Rounds: begin, {clients} answers, scored by "
               f"the share misclassified; against numpy's product of the same shape "
               f"({clients + 1}×{features} by {features}×{rows}) into an array that is there "
               f"already, float64 both. One thread of BLAS, in turns, medians of {repeats}, "
               "processor time.",
        "round_ms": 1e3 * mine, "product_ms": 1e3 * least, "clients": clients, "rows": rows,
        "features": features, "data": "random rows of length 1",
        **spread([one / two for one, two in zip(*both, strict=True)]),
    }


def take_turns(sides: list[Callable[[], None]], repeats: int) -> list[list[float]]:
    """Processor seconds that each of several things takes, in turns, after each was done once: what
    else the machine does is not in them."""
    for side in sides:
        side()
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for side, mine in zip(sides, times, strict=True):
            began = time.process_time()
            side()
            mine.append(time.process_time() - began)
    return times
