"""Snapshot rounds: reject on negative influence (paper 5.5, Algorithm 2). Pure.

After an update, with probability ``rate``, a round begins: the weights are copied, and the next
ticket of each active client is a validation ticket, which holds the copy. When all have answered,
or time is up, each answer's influence r = err(M_s, V) - err(M_s + delta, V) is added to its
client's total, and a total below minus the threshold is a strike.

Where we follow section 5.5 and not the listing: the listing's inequality signs are the wrong way
round; a silent client does not stop a round; good influence cannot be saved up for later (a total
is at most 0); a strike uses up the evidence it was given for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from accord.objective import Objective
from accord.task import Validation


@dataclass(slots=True)
class Round:
    """One open snapshot round.

    Attributes:
        snapshot: a copy of the weights, float64 (d,).
        waiting: sessions that have not answered.
        answers: by session.
        deadline: when it closes, seconds of the broker's clock.
    """

    snapshot: np.ndarray
    waiting: set[bytes]
    deadline: float
    answers: dict[bytes, np.ndarray] = field(default_factory=dict)


class Validator:
    """Judges updates on the curator's validation set.

    Args:
        objective: what error and loss are.
        rows: (n, d); labels: (n,), 0.0 or 1.0.
        rules: the task's.
    """

    def __init__(
        self, objective: Objective, rows: np.ndarray, labels: np.ndarray, rules: Validation
    ) -> None:
        self._objective = objective
        self._rows = rows
        self._labels = labels
        self._rules = rules
        self.totals: dict[bytes, float] = {}
        self.round: Round | None = None
        self.rounds = 0

    def measure(self, weights: np.ndarray) -> tuple[float, float]:
        """Error and mean loss of one model on the validation set."""
        models = weights[None, :]
        error = self._objective.error(models, self._rows, self._labels)
        loss = self._objective.loss(models, self._rows, self._labels)
        return float(error[0]), float(loss[0])

    def begin(
        self, weights: np.ndarray, active: Sequence[bytes], now: float, chance: float
    ) -> bool:
        """Begin a round if none is open and chance, uniform in [0, 1), says so."""
        if self.round is not None or not active or chance >= self._rules.rate:
            return False
        self.round = Round(weights.copy(), set(active), now + self._rules.seconds)
        return True

    def snapshot_for(self, name: bytes) -> np.ndarray | None:
        """The snapshot, when this client still owes the open round an answer."""
        if self.round is not None and name in self.round.waiting:
            return self.round.snapshot
        return None

    def answer(self, name: bytes, delta: np.ndarray) -> None:
        """File a client's answer; one that comes after its round has closed counts for nothing."""
        if self.round is not None and name in self.round.waiting:
            self.round.waiting.discard(name)
            self.round.answers[name] = delta

    def settle(self, now: float) -> list[bytes] | None:
        """Close the round if all have answered or its time is up, and judge it.

        Returns:
            The sessions that earned a strike; None while the round goes on, or there is none.
        """
        if self.round is None or (self.round.waiting and now < self.round.deadline):
            return None
        done, self.round = self.round, None
        self.rounds += 1
        if not done.answers:
            return []
        names = list(done.answers)
        models = np.vstack([done.snapshot, done.snapshot + np.array(list(done.answers.values()))])
        metric = getattr(self._objective, self._rules.metric)
        scores = metric(models, self._rows, self._labels)
        struck = []
        for name, influence in zip(names, scores[0] - scores[1:], strict=True):
            total = min(0.0, self.totals.get(name, 0.0) + float(influence))
            if total < -self._rules.threshold:
                struck.append(name)
                total = 0.0
            self.totals[name] = total
        return struck

    def abandon(self) -> None:
        """Drop the open round, if any, without judging it."""
        self.round = None
