"""Weights, and the step (paper 5.3, appendix A). Pure.

Asynchronous: each update is added as it comes. Synchronous: the updates of a round are held until
the round closes, and their mean is added; until then none of them is acknowledged.
"""

from __future__ import annotations

import numpy as np


class Aggregator:
    """The model in the making.

    Args:
        dimension: length of the weights; they begin at 0.

    Attributes:
        weights: float64, shape (dimension,).
        updates: how many steps were taken.
        round: the updates held for the open round, by session.
    """

    def __init__(self, dimension: int) -> None:
        self.weights = np.zeros(dimension)
        self.updates = 0
        self.round: dict[bytes, np.ndarray] = {}

    def apply(self, delta: np.ndarray) -> None:
        """Take one step."""
        self.weights = self.weights + delta
        self.updates += 1

    def hold(self, name: bytes, delta: np.ndarray) -> None:
        """Keep a client's update for the open round. A second one does not replace it: whoever
        has seen that its ticket was real may not think again."""
        self.round.setdefault(name, delta)

    def close_round(self) -> list[bytes]:
        """Take the mean of what was held as one step.

        Returns:
            The sessions whose updates were in it.
        """
        names = list(self.round)
        if names:
            self.apply(np.mean(list(self.round.values()), axis=0))
        self.round.clear()
        return names
