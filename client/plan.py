"""From what a person wishes to what is released: batch, epsilon, and for how many steps. Pure.

Whoever names a total (``--budget``) and nothing else gets the least noise that it buys. At an equal
total the batch hardly changes the noise of a mean while each update's epsilon is small, as the
total grows about as ``(b / n) epsilon`` and the noise falls as ``1 / (b epsilon)``; with a larger
epsilon small batches are noisier, and in any case they leave to chance which rows are drawn. So all
rows are in each batch: ``tormentor experiment utility`` measures that nothing else is better by
more than can be told. Whoever names the epsilon of an update pays for larger batches with a larger
total, and gets a small one.

Where several private steps make an update, each of them is a release: at an equal total each has
more noise, which their sum hides again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from accord.task import Task
from client.accounting import affordable_epsilon
from client.noise import Mechanism, Release

MOST_BATCH: Final = 10_000
"""Larger batches are advised to nobody, for the time that they take."""
SMALL_BATCH: Final = 50
"""Advised where the epsilon of one update is named."""
ADVISED_STEPS: Final = 10
"""Steps of an update that nobody makes more of without having typed it, whatever a task allows:
they are paid for before the first is judged, and lost when a broker goes away."""
_FASTER: Final = 1.5


def advised_batch(rows: int, *, fixed_epsilon: bool) -> int:
    """How many rows to draw for an update, out of so many.

    Args:
        rows: of the person.
        fixed_epsilon: the person named the epsilon of one update, not a total.
    """
    return min(rows, SMALL_BATCH if fixed_epsilon else MOST_BATCH)


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
    already: Mapping[Release, int] | None = None, local_steps: int = 1,
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
        local_steps: private steps, each a release, that make an update.

    Raises:
        Problem: ``BUDGET_SMALL``.
        ValueError: as :class:`client.noise.Release`.
    """
    batch = advised_batch(rows, fixed_epsilon=epsilon is not None) if batch is None else batch
    if epsilon is None:
        updates = expected_updates(task, min_clients) if updates is None else updates
        epsilon = affordable_epsilon(
            budget, delta, updates * local_steps, batch, rows, task.dimension, noise, already)
    return Release(epsilon, batch, rows, task.dimension, noise,
                   delta if noise == "gaussian" else 0.0)
