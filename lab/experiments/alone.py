"""One client that trains alone: the real trainer, step after step, without a broker between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from accord.objective import OBJECTIVES
from accord.schema import Schema
from accord.task import Task, Training
from lab.adversary import counter, honest
from lab.setting import auc

Part = tuple[np.ndarray, np.ndarray]
"""Rows (n, d) and labels (n,)."""


@dataclass(frozen=True, slots=True)
class Course:
    """The models of one training.

    Attributes:
        updates: after how many updates each was taken.
        live: the models then, (m, d).
        averaged: the same, averaged over the way (:func:`averaged`), (m, d).
    """

    updates: list[int]
    live: np.ndarray
    averaged: np.ndarray


def averaged(before: np.ndarray, live: np.ndarray, t: int, power: int = 3) -> np.ndarray:
    """The running average of the models after the t-th step, later ones weighing more.

    Polynomial-decay averaging: O. Shamir and T. Zhang, "Stochastic gradient descent for non-smooth
    optimization", ICML 2013, section 3.1; about the last 1/(power + 1) of the way counts.

    Args:
        before: the average so far, (d,); of no meaning when t is 1.
        live: the model after the step, (d,).
        t: from 1.
        power: 0 for the plain mean.
    """
    after: np.ndarray = before + (power + 1) / (t + power) * (live - before)
    return after


def train(
    schema: Schema, training: Training, part: Part, batch: int, epsilon: float | None,
    points: Sequence[int], seed: Sequence[int],
) -> Course:
    """Train on one client's rows, from zero, with the client's own trainer.

    Args:
        schema: of the rows.
        training: step, schedule, clip; where training ends is not looked at.
        part: the client's rows and labels.
        batch: rows of a minibatch.
        epsilon: of one update's noise; None for no noise.
        points: after how many updates a model is taken, ascending; the last one ends it.
        seed: of all chance.
    """
    task = Task(title="An experiment", data=schema, training=training)
    stepper = honest(task, *part, batch, epsilon, counter())
    rng = np.random.Generator(np.random.PCG64(list(seed)))
    weights = mean = np.zeros(task.dimension)
    wanted = set(points)
    live, means = [], []
    for t in range(1, points[-1] + 1):
        # What a client gets over the wire has the precision of float32.
        sent = weights.astype(np.float32).astype(np.float64)
        weights = weights + stepper.update(sent, rng).delta
        mean = averaged(mean, weights, t)
        if t in wanted:
            live.append(weights)
            means.append(mean)
    return Course(list(points), np.array(live), np.array(means))


def loss_error_auc(weights: np.ndarray, part: Part) -> tuple[float, float, float]:
    """Mean loss, share misclassified, and area under the ROC curve of one model (d,)."""
    logistic = OBJECTIVES["logistic"]
    models = weights[None, :]
    return (float(logistic.loss(models, *part)[0]), float(logistic.error(models, *part)[0]),
            auc(part[0] @ weights, part[1]))


def spaced(most: int, each: int = 10) -> list[int]:
    """Numbers of updates from 1 to ``most``, so many in each power of ten, and ``most``."""
    found = {round(10 ** (k / each)) for k in range(each * len(str(most)))}
    return sorted({n for n in found if n <= most} | {most})
