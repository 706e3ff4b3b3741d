"""One update: pay, then steps, each with a minibatch, a clip and noise of its own. Pure.

A step is ``-eta_t (lambda w + release)``. Only the release has seen rows; the weights came from the
broker, or from there and from releases, and everything after a release is post-processing, which
costs no privacy. An update is the sum of as many steps as the person wishes and the task allows,
each made from where the one before has led: to the ledger they are so many releases, to the broker
one vector and how many they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from accord.messages import Precision
from accord.objective import OBJECTIVES
from accord.task import Task, step_size
from client.dataset import Dataset
from client.noise import Release, Releases, batches

_TRAVELS: Final[dict[Precision, tuple[type[np.floating], float]]] = {
    "float32": (np.float32, 1e-6), "float16": (np.float16, 1e-3)}
"""What an update is rounded to; and by how much steps are made shorter than they may be. Rounding
lengthens a vector by less than 2^-24 of it, or 2^-11, so it stays within the bound."""
_SMALL: Final = 1e-280  # squares of lengths between it and 1 / it have all their digits
_AT_ONCE: Final = 64
"""Steps whose noise is drawn together: of a large model it fills some memory."""


class Made(NamedTuple):
    """An update as it is sent.

    Attributes:
        delta: what is to be added to the weights, (d,), in the precision in which it travels.
        steps: how many steps it is the sum of.
    """

    delta: np.ndarray
    steps: int


@dataclass(frozen=True, slots=True, repr=False)
class Trainer:
    """What makes updates.

    Attributes:
        task: the one that was joined.
        data: the person's own.
        kind: of each release; it is what the ledger is told.
        spend: writes so many releases into the ledger, durably, or as many as may still be, and
            gives their numbers among those of this task, from 1. Raises when there may be none.
        local_steps: how many steps make an update, while the budget lasts.

    Raises:
        ValueError: the kind is not of this data and task, or the task does not allow so many steps.
    """

    task: Task
    data: Dataset
    kind: Release
    spend: Callable[[int], range]
    local_steps: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        if self.kind.rows != len(self.data.labels) or self.kind.dimension != self.task.dimension:
            raise ValueError(f"{self.kind} is not of this data and task")
        if not 1 <= self.local_steps <= self.task.training.local_steps:
            raise ValueError(f"{self.local_steps} steps are not what the task allows")

    def update(
        self, weights: np.ndarray, rng: np.random.Generator,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Made:
        """One noised update.

        Args:
            weights: shape (d,), finite.
            rng: for this update only.
            stopped: asked before each step: whether nobody wants the rest any more. All steps are
                paid for at the beginning.

        Returns:
            The update, no longer than the task's ``max_norm`` for each of its steps.

        Raises:
            Problem: ``BUDGET_SPENT``, ``DISK``; then no row was looked at.
        """
        # First of all: a release that is not on disk does not exist. The numbers also outlive
        # this process, so that the schedule goes on where it was.
        numbers = self.spend(self.local_steps)
        assert len(numbers), "nothing was paid for"
        training, data = self.task.training, self.data
        gradients = OBJECTIVES[self.task.objective].gradients
        dtype, margin = _TRAVELS[training.precision]
        limit = training.max_norm * (1 - margin)
        here, delta, made = weights, np.zeros(len(weights)), 0
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(numbers), _AT_ONCE):
                some = numbers[start : start + _AT_ONCE]
                # All that is random at once, which costs little more than for one step.
                chosen = batches(self.kind, len(some), rng)
                releases = Releases(self.kind, training.clip, len(some), rng)
                for t, mine in zip(some, chosen, strict=True):
                    if made and stopped():
                        break
                    step = releases.release(
                        gradients(here, data.rows.take(mine, axis=0), data.labels.take(mine)))
                    step += training.regularisation * here
                    step *= -step_size(training, t)
                    delta += shortened(step, limit)
                    here = weights + delta
                    made += 1
        return Made(_rounded(delta, dtype, made * training.max_norm), made)


def shortened(vector: np.ndarray, limit: float) -> np.ndarray:
    """The vector, float64, where it is longer than the limit made just so long."""
    square = float(vector @ vector)
    if _SMALL < square < 1 / _SMALL:
        length = math.sqrt(square)
    else:
        peak = float(np.abs(vector).max())
        if not np.isfinite(peak) or peak == 0.0:
            # Overflow, which only absurd constants reach: no direction is left to go.
            return np.zeros(len(vector))
        length = peak * float(np.linalg.norm(vector / peak))
    return vector if length <= limit else vector * (limit / length)


def _rounded(vector: np.ndarray, dtype: type[np.floating], bound: float) -> np.ndarray:
    """The vector in another precision, no longer than the bound."""
    short = vector.astype(dtype)
    # Below its smallest numbers rounding is not relative any more.
    if float(np.linalg.norm(short.astype(np.float64))) > bound:
        return np.zeros(len(vector), dtype=dtype)
    return short
