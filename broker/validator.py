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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from accord.objective import Objective
from accord.task import Validation

_CELLS: Final = 1_000_000
"""Predictions that are worked out at a time: 8 MB."""


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

    def answer(self, name: bytes, snapshot: np.ndarray, delta: np.ndarray) -> list[bytes]:
        """File a client's answer to the snapshot that it was given.

        One that comes after its round has closed is judged at once: being late is no way out.

        Returns:
            The session, if it was late and earned a strike.
        """
        open_round = self.round
        if open_round is None or open_round.snapshot is not snapshot:
            return self._judge(snapshot, {name: delta})
        if name in open_round.waiting:
            open_round.waiting.discard(name)
            open_round.answers[name] = delta
        return []

    def settle(self, now: float) -> list[bytes] | None:
        """Close the round if all have answered or its time is up, and judge it.

        Returns:
            The sessions that earned a strike; None while the round goes on, or there is none.
        """
        if self.round is None or (self.round.waiting and now < self.round.deadline):
            return None
        done, self.round = self.round, None
        self.rounds += 1
        return self._judge(done.snapshot, done.answers)

    def _judge(self, snapshot: np.ndarray, answers: Mapping[bytes, np.ndarray]) -> list[bytes]:
        """Add up each answer's influence; the sessions that earned a strike by it."""
        if not answers:
            return []
        scores = self._scores(np.vstack([snapshot, *(snapshot + d for d in answers.values())]))
        struck = []
        for name, influence in zip(answers, scores[0] - scores[1:], strict=True):
            total = min(0.0, self.totals.get(name, 0.0) + float(influence))
            if total < -self._rules.threshold:
                struck.append(name)
                total = 0.0
            self.totals[name] = total
        return struck

    def _scores(self, models: np.ndarray) -> np.ndarray:
        """The metric of each model (m, d), shape (m,), with bounded memory."""
        metric = getattr(self._objective, self._rules.metric)
        stretch = max(1, _CELLS // len(models))
        total = np.zeros(len(models))
        for start in range(0, len(self._rows), stretch):
            rows = self._rows[start : start + stretch]
            total += len(rows) * metric(models, rows, self._labels[start : start + stretch])
        return total / len(self._rows)

    def abandon(self) -> None:
        """Drop the open round, if any, without judging it."""
        self.round = None
