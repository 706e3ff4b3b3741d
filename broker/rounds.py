"""Snapshot rounds: reject on negative influence (paper 5.5, Algorithm 2). Pure.

A round has a snapshot, a copy of the weights when it began, and EVERY ticket that is given out
while it lasts holds that snapshot. It lasts for as many answers as there were active clients when
it began, from whomever they come: so nobody who is slow or silent stops it. When it begins, a
secret coin (heads with probability ``rate``) says whether it is judged. Each answer is applied to
the live model as it comes, judged or not. In a judged round all answers that come are kept, and
scored when it closes: r = err(M_s, V) - err(M_s + delta, V), where M_s is what the answer's own
ticket held, is added to the sender's total, and a total below minus the threshold is a strike.

Nothing that is sent depends on the coin, so a poisoner cannot tell validation from work: that
holds by construction, not by resemblance. Nor can it wait and see: the coin that counts for an
answer is that of the round in which it comes, and shows (by strikes) only when that is over. So
holding a ticket back, whatever became of the round that it is from, leaves its answer the same
chance of being judged. And no client spends privacy on work that is only a test. The price: work
is stale by a round, and by two where its client was slow.

Why an answer that comes after its own round is not judged always: whenever a round closes, all
clients but one are at work on a ticket of it, so that would be near half of all answers, whatever
the rate.

The influence of an update is that of all of it, as it is applied, however many steps it is the sum
of: to first order in its length that of m steps is the sum of the influences that they would have
had one by one, so it reaches the threshold m times as soon.

Where we follow section 5.5 and not the listing: the listing's inequality signs are the wrong way
round; good influence cannot be saved up for later (a total is at most 0); a strike uses up the
evidence it was given for.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import numpy as np

from accord.objective import Objective
from accord.task import Validation
from broker.verdict import Update, Verdict

_CELLS: Final = 1_000_000
"""Predictions that are worked out at a time: 8 MB."""
_TOTAL: Final = struct.Struct("<d")


class Answer(NamedTuple):
    """Whose, the snapshot that its ticket held, and the update; (d,) each."""

    name: bytes
    sent: np.ndarray
    delta: np.ndarray


@dataclass(slots=True)
class Round:
    """An open round.

    Attributes:
        snapshot: what its tickets hold, float64 (d,); a copy.
        judged: what the coin said.
        left: answers until it closes; None: it is closed from outside.
        answers: those to be scored; none are kept when it is not judged.
    """

    snapshot: np.ndarray
    judged: bool
    left: int | None
    answers: list[Answer] = field(default_factory=list)


class Rounds:
    """The test ``rounds``.

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
        self._totals: dict[bytes, float] = {}
        self._round: Round | None = None

    @property
    def due(self) -> bool:
        """Whether a round must begin before the next ticket is given out, or answer judged."""
        return self._round is None

    @property
    def snapshot(self) -> np.ndarray:
        """What a ticket holds now; a round must be open."""
        assert self._round is not None
        return self._round.snapshot

    def begin(self, live: np.ndarray, answers: int | None, chance: float) -> None:
        """Begin a round.

        Args:
            live: the weights; copied.
            answers: after how many it closes (at least 1); None: when :meth:`close` is called.
            chance: the coin, uniform in [0, 1).
        """
        left = None if answers is None else max(1, answers)
        self._round = Round(live.copy(), chance < self._rules.rate, left)

    def judge(self, update: Update, live: np.ndarray) -> Verdict:
        """Take one answer; a round must be open.

        Args:
            update: the answer; its ticket may be of whatever round.
            live: not looked at.
        """
        assert self._round is not None
        if self._round.judged:
            self._round.answers.append(Answer(update.name, update.sent, update.delta))
        if self._round.left is not None:
            self._round.left -= 1
            if self._round.left == 0:
                return replace(self.close(), apply=update.step)
        return Verdict(update.step)

    def close(self) -> Verdict:
        """Close the open round, if any, and score its answers."""
        done, self._round = self._round, None
        if done is None or not done.answers:
            return Verdict(None)
        return self._score(done.answers)

    def abandon(self) -> None:
        """Drop the open round, if any, unscored."""
        self._round = None

    def retire(self) -> None:
        """Drop it, and the rows: there will be no other."""
        self.abandon()
        self._rows, self._labels = np.zeros((0, 0)), np.zeros(0)

    def _score(self, answers: Sequence[Answer]) -> Verdict:
        """Add up influences; the sessions that earned a strike by it.

        Whoever answered several times in a round has the sum of its influences, as all of its
        answers were applied. A mean would let a poisoner thin its poison out with idle answers.
        """
        snapshots = {id(a.sent): a.sent for a in answers}
        before, after = np.split(self._metric(np.vstack(
            [*snapshots.values(), *(a.sent + a.delta for a in answers)])), [len(snapshots)])
        metric = dict(zip(snapshots, before, strict=True))
        sums: dict[bytes, float] = {}
        for answer, then in zip(answers, after, strict=True):
            influence = float(metric[id(answer.sent)] - then)
            sums[answer.name] = sums.get(answer.name, 0.0) + influence
        struck = []
        for name, influence in sums.items():
            total = min(0.0, self._totals.get(name, 0.0) + influence)
            if total < -self._rules.threshold:
                struck.append(name)
                total = 0.0
            self._totals[name] = total
        return Verdict(None, struck=struck, touched=list(sums))

    def _metric(self, models: np.ndarray) -> np.ndarray:
        """The metric of each model (m, d), shape (m,), with bounded memory."""
        metric = getattr(self._objective, self._rules.metric)
        stretch = max(1, _CELLS // len(models))
        total = np.zeros(len(models))
        for start in range(0, len(self._rows), stretch):
            rows = self._rows[start : start + stretch]
            total += len(rows) * metric(models, rows, self._labels[start : start + stretch])
        return total / len(self._rows)

    # -- what must outlive a crash (an open round does not: its tickets are void then) ---------

    def evidence(self, name: bytes) -> bytes:
        """A session's total, 8 bytes; empty for 0."""
        total = self._totals.get(name, 0.0)
        return _TOTAL.pack(total) if total else b""

    def restore(self, name: bytes, evidence: bytes) -> None:
        """Take a session's total back from what :meth:`evidence` gave."""
        if evidence:
            (self._totals[name],) = _TOTAL.unpack(evidence)

    def forget(self, name: bytes) -> None:
        """Forget a session, its answers to the open round included."""
        self._totals.pop(name, None)
        if self._round is not None:
            self._round.answers = [a for a in self._round.answers if a.name != name]

    def state(self) -> bytes:
        """Nothing is kept of the test as a whole."""
        return b""

    def restore_state(self, state: bytes) -> None:
        """Nothing was kept."""
