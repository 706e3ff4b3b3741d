"""The curator's validation set: what measures the model, and what judges updates. Pure.

There are three tests: :class:`broker.sequential.Sequential`, :class:`broker.rounds.Rounds` and
none. The brokerage knows this seam only: every accepted update is judged, once, here.
"""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np

from accord.objective import OBJECTIVES, Objective
from accord.task import Task, Training, Validation, commitment, needs_validation
from broker.landscape import Landscape
from broker.rounds import Rounds
from broker.screen import Screen
from broker.sequential import Sequential
from broker.verdict import Update, Verdict

VALIDATION_ROWS: Final = 100_000
"""Most rows of a validation set: a round with 100 clients is then judged in about a second."""
_LOOK_EVERY: Final = 8
"""Updates between two looks at the validation loss's slopes, for small sets;"""
_LOOK_CELLS: Final = 200_000
"""for larger ones so many times as many as they have of these numbers: under a millisecond each."""


class Judge(Protocol):
    """What judges updates."""

    def judge(self, update: Update, live: np.ndarray) -> Verdict:
        """Judge one update; live: the model now, float64 (d,)."""

    def evidence(self, name: bytes) -> bytes:
        """What must outlive a crash, of one session: opaque and small."""

    def restore(self, name: bytes, evidence: bytes) -> None:
        """Take it back."""

    def forget(self, name: bytes) -> None:
        """Forget a session."""

    def state(self) -> bytes:
        """What must outlive a crash, of the test itself: opaque and small."""

    def restore_state(self, state: bytes) -> None:
        """Take it back."""


class Nothing:
    """The test ``none``: everything is applied, nobody is struck."""

    def judge(self, update: Update, live: np.ndarray) -> Verdict:
        """Apply it."""
        return Verdict(update.step)

    def evidence(self, name: bytes) -> bytes:
        """None."""
        return b""

    def restore(self, name: bytes, evidence: bytes) -> None:
        """There is none."""

    def forget(self, name: bytes) -> None:
        """Nothing is known."""

    def state(self) -> bytes:
        """None."""
        return b""

    def restore_state(self, state: bytes) -> None:
        """There is none."""


class Validator:
    """Measures the model and judges updates.

    Args:
        objective: what error and loss are.
        rows: (n, d); labels: (n,), 0.0 or 1.0. Both are empty where there is no validation set.
        rules: how updates are judged. training: how they are made.

    Attributes:
        measures: whether there is a validation set.
        baseline: error of always giving its more frequent answer; None where there is none.
    """

    def __init__(
        self, objective: Objective, rows: np.ndarray, labels: np.ndarray, rules: Validation,
        training: Training,
    ) -> None:
        self._objective = objective
        self._rows = rows
        self._labels = labels
        self.measures = len(labels) > 0
        self.baseline = float(min(labels.mean(), 1 - labels.mean())) if self.measures else None
        self._rounds: Rounds | None = None
        self._test: Judge = Nothing()
        if rules.test == "rounds":
            self._test = self._rounds = Rounds(objective, rows, labels, rules)
        elif rules.test == "sequential":
            self._test = Sequential(rows, labels, rules, training)
        self._screen = Screen(rules, training)
        self._strict = rules.screen == "direction"
        self._land: Landscape | None = None
        if rules.test == "sequential" or self._strict:
            self._land = Landscape(objective, rows, labels, training.clip)
        self._look_every = _LOOK_EVERY * max(1, -(-rows.size // _LOOK_CELLS))
        self._look_in = 0

    def measure(self, models: np.ndarray) -> tuple[list[float], list[float]]:
        """Errors and mean losses of models (m, d) on the validation set, which there must be."""
        error = self._objective.error(models, self._rows, self._labels)
        loss = self._objective.loss(models, self._rows, self._labels)
        return error.tolist(), loss.tolist()

    # -- judging -------------------------------------------------------------------------------

    @property
    def round_due(self) -> bool:
        """Whether :meth:`begin_round` must be called before the next ticket is given out, or update
        judged."""
        return self._rounds is not None and self._rounds.due

    def begin_round(self, live: np.ndarray, answers: int | None, chance: float) -> None:
        """Begin a round of the test ``rounds``; the others have none.

        Args:
            live: the weights.
            answers: after how many it closes; None: when :meth:`close_round` is called.
            chance: uniform in [0, 1), a secret.
        """
        if self._rounds is not None:
            self._rounds.begin(live, answers, chance)

    def close_round(self) -> Verdict:
        """A synchronous round is over, all of its updates have been judged."""
        return Verdict(None) if self._rounds is None else self._rounds.close()

    def retire(self) -> None:
        """Training is over: nothing is measured or judged any more, and the rows are let go."""
        self._rows, self._labels = np.zeros((0, 0)), np.zeros(0)
        self._land = None
        if self._rounds is not None:
            self._rounds.retire()

    def ticket_weights(self, live: np.ndarray) -> np.ndarray:
        """What a ticket that is given out now holds; :meth:`judge` is to get it back."""
        return live if self._rounds is None else self._rounds.snapshot

    def judge(
        self, name: bytes, sent: np.ndarray, live: np.ndarray, delta: np.ndarray, steps: int = 1
    ) -> Verdict:
        """Judge an accepted update; called once for each.

        Args:
            name: whose.
            sent: what its ticket held.
            live: the model now.
            delta: the update; of an allowed length, finite.
            steps: how many it is the sum of, as its client says.
        """
        land = self._land
        if land is not None:
            if self._look_in == 0:
                self._look_in = self._look_every
                land.look(live)
                if isinstance(self._test, Sequential):
                    self._test.looked(land, live)
            self._look_in -= 1
        update = self._screen.look(
            name, sent, delta, land.downhill if land is not None and self._strict else None, steps)
        verdict = self._test.judge(update, live)
        for struck in verdict.struck:
            self._screen.struck(struck)
        return verdict

    # -- what must outlive a crash -------------------------------------------------------------

    def evidence(self, name: bytes) -> bytes:
        """What the test has on a session: opaque and small."""
        return self._screen.record(name) + self._test.evidence(name)

    def restore(self, name: bytes, evidence: bytes) -> None:
        """Take back what :meth:`evidence` gave."""
        self._test.restore(name, self._screen.restore(name, evidence))

    def forget(self, name: bytes) -> None:
        """Forget a session."""
        self._screen.forget(name)
        self._test.forget(name)

    def state(self) -> bytes:
        """What the test has on nobody in particular: opaque and small."""
        return self._test.state()

    def restore_state(self, state: bytes) -> None:
        """Take back what :meth:`state` gave."""
        self._test.restore_state(state)


def make_validator(task: Task, rows: np.ndarray, labels: np.ndarray) -> Validator | None:
    """The validator of a task.

    Args:
        task: what is trained.
        rows: (n, d), of length 1 each; labels: (n,). Both are empty for no validation set.

    Returns:
        None when the set does not fit the task: other shapes, one label only, too many rows; or
        when there is none although the task names one, or needs one
        (:func:`accord.task.needs_validation`).
    """
    rules = task.validation
    if len(labels) == 0:
        if rows.size or rules.digest or needs_validation(task):
            return None
        rows = np.zeros((0, task.dimension))
    else:
        fits = rows.ndim == 2 and rows.shape == (len(labels), task.dimension)
        if not fits or len(rows) > VALIDATION_ROWS or not np.isfinite(rows).all():
            return None
        # Rows of another length than 1 would make gradients and errors mean something else.
        if not np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-3):
            return None
        if set(np.unique(labels)) != {0.0, 1.0}:
            return None
    return Validator(OBJECTIVES[task.objective], rows, labels, rules, task.training)


def committed(task: Task, salt: bytes, rows: bytes, labels: bytes) -> bool:
    """Whether a validation set is the one that a task commits to, or neither has one.

    Args:
        task: its ``validation.digest`` is looked at.
        salt, rows, labels: as they were sent.
    """
    if not rows and not labels:
        return task.validation.digest == ""
    return task.validation.digest == commitment(salt, rows, labels)
