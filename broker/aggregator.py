"""Weights, and the step (paper 5.3, appendix A). Pure.

Asynchronous: each update is added as it comes. Synchronous: the updates of a round are held until
the round closes, and their mean, or what else the task says (:mod:`broker.robust`), is added;
until then none of them is acknowledged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from broker.robust import AGGREGATES


class Aggregator:
    """The model in the making.

    Args:
        dimension: length of the weights; they begin at 0.
        aggregate: what a synchronous round makes of its updates: a key of
            :data:`broker.robust.AGGREGATES`.

    Attributes:
        weights: float64, shape (dimension,). Never changed in place: whoever holds it keeps it.
        updates: how many steps were taken.
        round: the updates held for the open round, by session.
    """

    def __init__(self, dimension: int, aggregate: str = "mean") -> None:
        self._aggregate = AGGREGATES[aggregate]
        self.weights = np.zeros(dimension)
        self.updates = 0
        self.round: dict[bytes, np.ndarray] = {}

    def apply(self, delta: np.ndarray) -> None:
        """Take one step."""
        self.weights = self.weights + delta
        self.updates += 1

    def mend(self, correction: np.ndarray) -> None:
        """Undo something; no step."""
        self.weights = self.weights + correction

    def hold(self, name: bytes, delta: np.ndarray) -> None:
        """Keep a client's update for the open round. A second one does not replace it: whoever
        has acted may not think again, and nobody counts twice."""
        self.round.setdefault(name, delta)

    def close_round(self, steps: Sequence[np.ndarray]) -> bool:
        """Make one step of those that passed their judgement, and end the round.

        Returns:
            Whether there was a step; there is none without any updates.
        """
        self.round.clear()
        if not steps:
            return False
        self.apply(self._aggregate(np.vstack(steps)))
        return True
