"""From what a person wishes to what is released: batch, epsilon, and for how many updates. Pure.

Whoever names a total (``--budget``) and nothing else gets the least noise that it buys. At an equal
total the batch hardly changes the noise of a mean, as the total grows about as ``(b / n) epsilon``
and the noise falls as ``1 / (b epsilon)``; but larger batches leave less chance in which rows are
drawn, and keep each update's epsilon small, where accounting is at its best. So the batch is large.
``tormentor experiment utility`` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from accord.task import Task
from client.accounting import affordable_epsilon
from client.noise import Mechanism, Release

LEAST_BATCH: Final = 50
"""Batches smaller than this are advised to nobody who has so many rows."""

_FASTER: Final = 1.5


def advised_batch(rows: int) -> int:
    """How many rows to draw for an update, out of so many."""
    return min(rows, max(LEAST_BATCH, rows // 4))


def expected_updates(task: Task, min_clients: int) -> int:
    """How many updates one client makes until the training ends, when the fewest clients are
    there that may be.

    Every round of a synchronous training. Else its share and half as much again, as some are
    faster than others; whose budget ends before the training would be missing for the others' k.
    """
    most = task.training.max_updates
    if task.training.mode == "synchronous":
        return most
    return min(most, math.ceil(_FASTER * most / max(min_clients, task.clients.minimum)))


def plan(
    task: Task, rows: int, min_clients: int, budget: float, delta: float, noise: Mechanism,
    epsilon: float | None = None, batch: int | None = None, updates: int | None = None,
    already: Mapping[Release, int] | None = None,
) -> Release:
    """The kind of release that a person's wishes come to.

    Args:
        task: what is joined.
        rows: of the person.
        min_clients: k.
        budget, delta: what may be spent in all.
        noise: its law.
        epsilon, batch, updates: where the person named them. Without an epsilon it is the largest
            at which so many updates, or those that are expected, stay within the budget.
        already: what was released of these rows before.

    Raises:
        Problem: ``BUDGET_SMALL``.
        ValueError: as :class:`client.noise.Release`.
    """
    batch = advised_batch(rows) if batch is None else batch
    if epsilon is None:
        updates = expected_updates(task, min_clients) if updates is None else updates
        epsilon = affordable_epsilon(
            budget, delta, updates, batch, rows, task.dimension, noise, already)
    return Release(epsilon, batch, rows, task.dimension, noise,
                   delta if noise == "gaussian" else 0.0)
