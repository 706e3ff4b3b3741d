"""How the validation loss lies around the model: slopes, and how sure we are of them. Pure.

Worked out now and then (:meth:`Landscape.look`), so that an update is judged by dot products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from accord.objective import Objective

_CELLS: Final = 1_000_000
"""Numbers of gradients that are worked out at a time: 8 MB."""
_MOST: Final = 2_000
"""Rows, or features, whichever are fewer, with which :func:`contrast` solves its equations."""
RIDGE: Final = 0.1
"""Added to the second moments of rows of length 1, whose largest is below 1. Measured on credit
data with 100 rows: 0.03 to 0.3 do equally well."""
_FOLDS: Final = 10


class Landscape:
    """The validation set's view of the model, as of the last look.

    Args:
        objective: what the loss is.
        rows: (n, d); labels: (n,), 0.0 or 1.0, both present.
        clip: the task's bound on a row's gradient, applied here as clients apply it.

    Attributes:
        downhill: the direction of the descent: minus the mean gradient, not scaled, (d,).
        common: the shortest vector among all mixtures of the two classes' own descents, (d,). Both
            classes' loss falls along it, so any honest client's update points along it in the
            mean, whichever answers its rows have (the min-norm point of Désidéri, "Multiple-
            gradient descent algorithm", 2012).
        certain: how long ``common`` is beyond what chance would make it with so few rows; 0 when
            it is not twice as long.
        losses: of each row, (n,).
    """

    def __init__(
        self, objective: Objective, rows: np.ndarray, labels: np.ndarray, clip: float
    ) -> None:
        self._objective = objective
        self._rows = rows
        self._labels = labels
        self._clip = clip
        self._classes = np.stack([labels <= 0.5, labels > 0.5]).astype(np.float64)

    def look(self, weights: np.ndarray) -> None:
        """Work everything out at these weights, (d,)."""
        rows, labels = self._rows, self._labels
        total = np.zeros((2, rows.shape[1]))
        square = np.zeros(2)
        losses = np.empty(len(labels))
        stretch = max(1, _CELLS // rows.shape[1])
        models = weights[None, :]
        for start in range(0, len(labels), stretch):
            some, said = rows[start : start + stretch], labels[start : start + stretch]
            down = -self._objective.gradients(weights, some, said)
            length = np.sqrt(np.einsum("ij,ij->i", down, down))
            down *= (self._clip / np.maximum(length, self._clip))[:, None]
            each = self._classes[:, start : start + stretch]
            total += each @ down
            square += each @ np.square(np.minimum(length, self._clip))
            losses[start : start + stretch] = self._objective.losses(models, some, said)[0]
        count = self._classes.sum(axis=1)
        zeros, ones = total / count[:, None]
        variance = (square / count - np.square(total / count[:, None]).sum(axis=1)) / count
        self.downhill = total.sum(axis=0) / len(labels)
        share = mixture(ones, zeros)
        self.common = share * ones + (1 - share) * zeros
        error = share**2 * variance[1] + (1 - share) ** 2 * variance[0]
        long = float(self.common @ self.common)
        # A single row has no spread to go by.
        sure = count.min() > 1 and long > 4 * error
        self.certain = float(np.sqrt(long - error)) if sure else 0.0
        self.losses = losses


def mixture(first: np.ndarray, second: np.ndarray) -> float:
    """The share s in [0, 1] for which ``s first + (1 - s) second`` is shortest."""
    apart = first - second
    square = float(apart @ apart)
    return 0.5 if square == 0.0 else float(np.clip(-(second @ apart) / square, 0.0, 1.0))


def contrast(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The direction, of length 1, in which the classes differ most: Fisher's discriminant, leaning
    so that rows of both classes lie equally far on their own sides of 0 in the mean.

    So an honest client's first updates have the same projection on it whichever share of its rows
    has which answer, and one whose labels are flipped has the opposite one.

    Args:
        rows: (n, d). labels: (n,), both answers present.

    Returns:
        (d,); zeros where the classes do not differ.
    """
    ones, zeros = rows[labels > 0.5].mean(axis=0), rows[labels <= 0.5].mean(axis=0)
    solve = _ridge(rows)
    apart, middle = solve(ones - zeros), solve(ones + zeros)
    lean = float((ones + zeros) @ middle)
    if lean > 1e-20:  # Less is rounding: leaning by that is leaning anywhere.
        apart = apart - float((ones + zeros) @ apart) / lean * middle
    length = float(np.linalg.norm(apart))
    return apart / length if length > 1e-12 else np.zeros_like(apart)


def _ridge(rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Solves (rows' second moments + RIDGE) x = y."""
    some = rows[:: -(-len(rows) // _MOST)] if min(rows.shape) > _MOST else rows
    n, d = some.shape
    if d <= n:
        inverse = np.linalg.inv(some.T @ some / n + RIDGE * np.eye(d))
        return lambda y: inverse @ y
    # Woodbury: as many equations as there are rows, where those are fewer than the features.
    inner = np.linalg.inv(some @ some.T / n + RIDGE * np.eye(n))
    return lambda y: (y - some.T @ (inner @ (some @ y)) / n) / RIDGE


def separation(rows: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """How far from 0, on its own side, a row lies along :func:`contrast` in the mean of both
    classes: on rows that the direction was not made from (ten folds); its own flatter it.

    Args:
        rows: (n, d). labels: (n,).

    Returns:
        The mean and its standard error; (0, infinity) when a class has a single row.
    """
    fold = np.empty(len(labels), dtype=int)
    for label in (0.0, 1.0):
        mine = np.flatnonzero(labels == label)
        if len(mine) < 2:
            return 0.0, float("inf")
        # Each fold gets its part of each class, whatever order the rows are in.
        fold[mine] = np.arange(len(mine)) % _FOLDS
    side = np.empty(len(labels))
    for k in range(_FOLDS):
        out = fold == k
        if out.any():
            side[out] = rows[out] @ contrast(rows[~out], labels[~out])
    side = np.where(labels > 0.5, side, -side)
    ones, zeros = side[labels > 0.5], side[labels <= 0.5]
    error = np.sqrt(ones.var() / len(ones) + zeros.var() / len(zeros))
    return 0.5 * float(ones.mean() + zeros.mean()), 0.5 * float(error)
