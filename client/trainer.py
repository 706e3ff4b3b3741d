"""One step of training: pay, draw a minibatch, clip, add noise, step. Pure.

The step is ``delta = -eta_t (lambda w + release)``. Only the release has seen rows; the weights
came from the broker and everything after the release is post-processing, which costs no privacy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from accord.objective import OBJECTIVES
from accord.task import Task, step_size
from client.dataset import Dataset
from client.noise import Release, release

_MARGIN: Final = 1e-6
"""Rounding to float32 lengthens a vector by less than 2^-24 of it, so it stays within the bound
when it was shortened by so much more."""


@dataclass(frozen=True, slots=True, repr=False)
class Trainer:
    """What makes steps.

    Attributes:
        task: the one that was joined.
        data: the person's own.
        kind: of each release; it is what the ledger is told.
        spend: writes one release into the ledger, durably, and gives its number among those of
            this task, from 1. Raises when it may not be.

    Raises:
        ValueError: the kind is not of this data and task.
    """

    task: Task
    data: Dataset
    kind: Release
    spend: Callable[[], int]

    def __post_init__(self) -> None:
        if self.kind.rows != len(self.data.labels) or self.kind.dimension != self.task.dimension:
            raise ValueError(f"{self.kind} is not of this data and task")

    def step(self, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One noised update.

        Args:
            weights: shape (d,), finite.
            rng: for this step only.

        Returns:
            The update, float32, shape (d,), no longer than the task's ``max_norm``.

        Raises:
            Problem: ``BUDGET_SPENT``, ``DISK``; then no row was looked at.
        """
        # First of all: a release that is not on disk does not exist. The number also outlives
        # this process, so that the schedule goes on where it was.
        t = self.spend()
        training = self.task.training
        chosen = rng.choice(self.kind.rows, size=self.kind.batch, replace=False, shuffle=False)
        gradients = OBJECTIVES[self.task.objective].gradients(
            weights, self.data.rows[chosen], self.data.labels[chosen])
        noised = release(gradients, training.clip, self.kind, rng)
        with np.errstate(over="ignore", invalid="ignore"):
            step = -step_size(training, t) * (training.regularisation * weights + noised)
            return _shrink(step, training.max_norm)


def _shrink(vector: np.ndarray, bound: float) -> np.ndarray:
    """The vector as float32, no longer than the bound, by shortening only."""
    peak = float(np.abs(vector).max())
    if not np.isfinite(peak) or peak == 0.0:
        # Overflow, which only absurd constants reach: no direction is left to go.
        return np.zeros(len(vector), dtype=np.float32)
    length = peak * float(np.linalg.norm(vector / peak))
    limit = bound * (1 - _MARGIN)
    short = (vector if length <= limit else vector * (limit / length)).astype(np.float32)
    # Below float32's smallest numbers rounding is not relative any more.
    if float(np.linalg.norm(short.astype(np.float64))) > bound:
        return np.zeros(len(vector), dtype=np.float32)
    return short
