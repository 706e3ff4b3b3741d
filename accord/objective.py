"""Losses that can be trained: prediction, error, loss, per-example gradients.

Pure functions of weights ``w`` (shape (d,), or (m, d) for many models at once where it says so),
rows ``X`` (n, d) and labels ``y`` (n,) of 0.0 and 1.0, in a table that is made to be extended:
what a task names in ``objective`` is a key of :data:`OBJECTIVES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np


@dataclass(frozen=True, slots=True)
class Objective:
    """What the three need to know of a loss.

    Attributes:
        words: for the person who joins.
        predict: (w, X) -> probability of the answer 1, shape (n,).
        error: (W, X, y) -> misclassified share for each model of W (m, d), shape (m,).
        losses: (W, X, y) -> the loss of each row for each model of W (m, d), shape (m, n).
        gradients: (w, X, y) -> the gradient of each example's loss, shape (n, d).
    """

    words: str
    predict: Callable[[np.ndarray, np.ndarray], np.ndarray]
    error: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    losses: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    gradients: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

    def loss(self, models: np.ndarray, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Mean loss for each model, shape (m,)."""
        return np.asarray(self.losses(models, rows, labels).mean(axis=1))


def _sigmoid(z: np.ndarray) -> np.ndarray:
    # tanh saturates without overflow on either side.
    return 0.5 * (1.0 + np.tanh(0.5 * z))


def _logistic_predict(w: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.asarray(_sigmoid(rows @ w))


def _logistic_error(models: np.ndarray, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    # A margin of exactly 0 is a guess for 0: an untrained model (w = 0) predicts class 0.
    guesses = models @ rows.T > 0
    return np.asarray((guesses != (labels > 0.5)).mean(axis=1))


def _logistic_losses(models: np.ndarray, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    margins = (models @ rows.T) * (2.0 * labels - 1.0)
    return np.asarray(np.logaddexp(0.0, -margins))


def _logistic_gradients(w: np.ndarray, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    wrong = rows @ w
    # In place, as clients do this some ten thousand times a second: _sigmoid(wrong) - labels.
    wrong *= 0.5
    np.tanh(wrong, out=wrong)
    wrong += 1.0
    wrong *= 0.5
    wrong -= labels
    return np.asarray(wrong[:, None] * rows)


OBJECTIVES: Final[dict[str, Objective]] = {
    "logistic": Objective(
        words="logistic regression: a yes-or-no answer from a weighted sum of the columns",
        predict=_logistic_predict,
        error=_logistic_error,
        losses=_logistic_losses,
        gradients=_logistic_gradients,
    ),
}
