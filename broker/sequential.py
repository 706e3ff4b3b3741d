"""The noise-aware sequential test: every update is scored, and evidence adds up. Pure.

Noise hides a poisoner in a single update, but updates are many. Each is projected on two
directions, and per client two log-likelihood ratios are kept (Wald, "Sequential tests of
statistical hypotheses", 1945), of "honest" against "opposed":

*labels*
    on the direction in which the validation set's classes differ
    (:func:`broker.landscape.contrast`). An honest client pushes along it, or not at all when the
    model has learnt it; one with flipped labels pushes against it wherever the model is. The
    direction is chosen so that a client whose rows have one answer only looks like any other.
    Where the validation loss itself still falls along it, half of that is expected of everyone:
    so a poisoner cannot look idle because the model is already where it wants it.
*harm*
    on the direction in which both classes' validation losses fall
    (:attr:`broker.landscape.Landscape.common`), while that is longer than chance makes it.

The noise of a client is estimated from its own stream, by successive differences, which a drift of
the model does not disturb, and as no more than honest updates can have; of its epsilon nothing is
known. Evidence of honesty has a floor, so that a sleeper has soon used it up; one update adds a
limited amount of the other kind.

What a strike does besides making puzzles harder: what the client has given is taken out of the
model again (in asynchronous training, unless the model is very large; what was given before a
restart, or before the model went back, stays), and nothing of a client with a strike is applied
until its evidence is back at the floor. The same probation holds for all who come after somebody
was struck, or after the evidence against all together has come to as much: so nothing is gained by
a new name, neither after a strike nor just before it. And when the validation loss is worse than it
was at its best, by more than chance, the model goes back to its best weights: some opponents cannot
be told from honest clients with unusual data, so nobody is struck for it.

An update of several steps is one score, on the mean of their gradients. Its noise is less, which
shows in the client's stream. One of fewer steps than the client's largest, m of M, is noisier than
the stream says by ``sqrt(M / m)``: its evidence weighs ``m / M``, which is just what the ratio of
likelihoods then says, and teaches nothing of the noise. So the last update of a budget strikes
nobody; and nobody washes itself clean of a long opposed update by a short honest one.

Error rate: for a client whose scores are independent, normal, not noisier than that and on average
on the honest side (labels: not below -0.2 of the expected effect; harm: not below 0), the chance of
ever being struck in ``max_updates`` updates is at most ``false_alarm``, half of it for each
direction: by Ville's inequality for the climb from 0, and by a union bound over all climbs from the
floor. That is for the true directions; with few validation rows those found are off, and clients
whose data differ from the set differ in the mean: tormentor experiment poison measures both.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np

from accord.task import Training, Validation
from broker.landscape import Landscape, contrast, separation
from broker.verdict import Update, Verdict

_HONEST: Final = -0.2
"""Mean score of the least honest client that is protected, in units of the expected effect."""
_OPPOSED: Final = -0.8
"""Mean score of the opponents that are looked for; flipped labels give -0.6 to -1. Halfway between,
evidence drifts neither way."""
_EXPECTED: Final = 0.5
"""Share of the validation loss's own slope that is expected of everyone."""
_SURE: Final = 2.0
"""The effect is taken for at least so many of its standard errors: with rows too few to say
anything, the test says nothing."""
_INCREMENT: Final = 3.0
"""Most evidence of either kind that one update can add: it takes three for a strike, and one honest
update does not wash six others clean. For normal scores the bound on false alarms holds on: what
the lower cut adds to E[exp(increment)] is e^-3 of what the upper one takes from it."""
_PRIOR: Final = 4
"""Updates that the first guess of a client's noise counts for: that its length is all noise."""
_MEMORY: Final = 50
"""A client's noise is estimated from about so many updates."""
_QUIET: Final = 2e-3
"""Least standard deviation of a score, in clips: a noiseless stream is no infinite evidence."""
_LOUD: Final = 0.1
"""Most variance of a score in squared clips. Measured on credit data: of honest updates, batches of
one row without noise have the most, 0.07;"""
_EVEN: Final = 2.5
"""and noise as long as the clip has one part of as many as there are directions."""
_WORSE: Final = 2.0
"""Standard errors by which the validation loss must be above its best for the model to go back."""
_WORSE_LEAST: Final = 1e-3
_REMEMBERED: Final = 10_000
"""What clients have given is remembered for models of so many numbers: 160 MB for 2,000 of them."""
_SHORTER: Final = 1
"""Updates of fewer steps than a session has shown it can make that are applied: a budget's last.
They weigh less and teach nothing of its noise; so an opponent that first says many steps, once, and
then makes few would hide all that it does."""
_RECORD: Final = struct.Struct("<ddddddqHB?")
_STATE: Final = struct.Struct("<qd")


@dataclass(slots=True)
class Noise:
    """The spread of one client's scores in one direction, from successive differences."""

    variance: float = 0.0
    last: float = math.nan

    def add(
        self, score: float, guess: float, count: int, most: float, weight: float = 1.0
    ) -> float:
        """Take one more score; the variance as estimated now.

        Args:
            score: the new one.
            guess: of the variance, before there is anything to go by.
            count: scores before this one.
            most: a difference counts for no more variance than this: who swings to and fro on
                purpose is not the noisier for it.
            weight: below 1 for one that is noisier than others of this client, and teaches nothing.
        """
        if weight < 1.0:
            return self.variance
        if count == 0 or math.isnan(self.last):
            if count == 0:
                self.variance = guess
        else:
            square = min(0.5 * (score - self.last) ** 2, most)
            self.variance += (square - self.variance) / min(count + _PRIOR, _MEMORY)
        self.last = score
        return self.variance


class Suspect:
    """What is known of one client.

    Attributes:
        labels, harm: log-likelihood ratios; above the threshold is a strike.
        most: steps of its update that had the most; shorter: how many since had fewer.
        out: struck, or come after somebody was, and not at the floor yet: nothing is applied.
        given: what of its updates is in the model, (d,); None: nothing, or it is not known.
    """

    __slots__ = ("count", "given", "harm", "harm_noise", "labels", "labels_noise", "most", "out",
                 "shorter")

    def __init__(self) -> None:
        self.labels = self.harm = 0.0
        self.labels_noise, self.harm_noise = Noise(), Noise()
        self.count = self.most = self.shorter = 0
        self.out = False
        self.given: np.ndarray | None = None


class Sequential:
    """The test ``sequential``.

    Args:
        rows: (n, d); labels: (n,), 0.0 or 1.0.
        rules: the task's. training: the task's.

    Attributes:
        threshold: evidence that is a strike.
        floor: least evidence.
        effect: how far flipped labels move a score; 0 when the rows cannot tell.
    """

    def __init__(
        self, rows: np.ndarray, labels: np.ndarray, rules: Validation, training: Training
    ) -> None:
        # Two directions, and in each the first climb from 0 and all those from the floor.
        self.threshold = math.log(4 / rules.false_alarm)
        self.floor = -math.log(training.max_updates)
        self._clip = training.clip
        self._noisiest = training.clip**2 * max(_LOUD, _EVEN / rows.shape[1])
        self._contrast = contrast(rows, labels)
        mean, error = separation(rows, labels)
        effect = max(mean, _SURE * error)
        # Gradients of rows of length 1 are at most 1 long; a smaller clip shortens them.
        self.effect = effect * min(1.0, 2.0 * training.clip) if math.isfinite(effect) else 0.0
        self._suspects: dict[bytes, Suspect] = {}
        self._best: np.ndarray | None = None
        self._best_losses: np.ndarray | None = None
        self._back = False
        self._strikes = 0
        self._gone = 0.0
        # In rounds it is means that are applied, of which nobody's part can be taken out.
        self._remembers = (
            training.mode == "asynchronous" and rows.shape[1] <= _REMEMBERED)
        self._harm = np.zeros(rows.shape[1])
        self._harm_effect = self._slope = 0.0

    def looked(self, land: Landscape, weights: np.ndarray) -> None:
        """Take what the landscape looks like now, at these weights."""
        self._slope = max(0.0, float(land.downhill @ self._contrast))
        length = float(np.linalg.norm(land.common))
        self._harm = land.common / max(length, 1e-300)
        self._harm_effect = land.certain
        if self._best is not None and self._best_losses is None:
            # After a restart: the best weights are known, their losses are not.
            land.look(self._best)
            self._best_losses = land.losses
            land.look(weights)
        if self._best_losses is None or float((land.losses - self._best_losses).mean()) < 0.0:
            self._best, self._best_losses = weights, land.losses
        self._back = _worse(land.losses, self._best_losses)

    def judge(self, update: Update, live: np.ndarray) -> Verdict:
        """Score one update.

        Args:
            update: as the screen measured it.
            live: the model now, (d,).
        """
        suspect = self._suspects.get(update.name)
        if suspect is None:
            suspect = self._suspects[update.name] = Suspect()
            suspect.out = self._alarmed()
        struck = self._score(suspect, update.gradient, update.steps)
        if suspect.out and self._proven(suspect):
            suspect.out = False
        mend = None
        if struck:
            self._strikes += 1
            suspect.out = True
            mend, suspect.given = suspect.given, None
            mend = None if mend is None else -mend
        if update.steps < suspect.most:
            suspect.shorter = min(suspect.shorter + 1, 255)
        apply = None if suspect.out or suspect.shorter > _SHORTER else update.step
        if self._back and self._best is not None:
            self._back = False
            # The best weights are from before: what of whom is in them is no longer known.
            for other in self._suspects.values():
                other.given = None
            mend = self._best - live
        if apply is not None and self._remembers:
            suspect.given = apply if suspect.given is None else suspect.given + apply
        return Verdict(apply, mend, [update.name] if struck else [])

    def _alarmed(self) -> bool:
        """Whether newcomers are on probation: somebody was struck, or the evidence against all
        together, those who have gone included, would be a strike. Otherwise whoever leaves just
        before its strike and comes back under a new name would never meet one."""
        against = self._gone + sum(max(0.0, s.labels, s.harm) for s in self._suspects.values())
        return self._strikes > 0 or against > self.threshold

    def _score(self, suspect: Suspect, gradient: np.ndarray, steps: int) -> bool:
        """Add an update's evidence; whether it makes a strike."""
        suspect.most = max(suspect.most, steps)
        weight = steps / suspect.most
        guess = float(gradient @ gradient) / len(gradient)
        least = (_QUIET * self._clip) ** 2
        score = float(gradient @ self._contrast) - _EXPECTED * self._slope
        variance = max(least, suspect.labels_noise.add(
            score, guess, suspect.count, self._noisiest, weight))
        if self.effect > 0.0:
            apart = (_HONEST - _OPPOSED) * self.effect
            middle = 0.5 * (_HONEST + _OPPOSED) * self.effect
            suspect.labels = self._add(
                suspect.labels, apart / variance * (middle - score), weight)
        score = float(gradient @ self._harm)
        variance = max(least, suspect.harm_noise.add(
            score, guess, suspect.count, self._noisiest, weight))
        if self._harm_effect > 0.0:
            effect = self._harm_effect
            suspect.harm = self._add(
                suspect.harm, effect / variance * (-0.5 * effect - score), weight)
        suspect.count += 1
        struck = max(suspect.labels, suspect.harm) > self.threshold
        if struck:
            suspect.labels = suspect.harm = 0.0
        return struck

    def _proven(self, suspect: Suspect) -> bool:
        """Whether evidence is at the floor, where there can be any: rows that tell nothing, or a
        model that nothing harms, must keep nobody out for ever."""
        if self.effect > 0.0:
            return suspect.labels <= self.floor and (
                suspect.harm <= 0.0 or self._harm_effect == 0.0)
        return suspect.harm <= self.floor or self._harm_effect == 0.0

    def _add(self, evidence: float, increment: float, weight: float) -> float:
        increment = min(max(increment, -_INCREMENT), _INCREMENT)
        return max(self.floor, evidence + weight * increment)

    # -- what must outlive a crash (what each client has given does not: it stays in) -----------

    def evidence(self, name: bytes) -> bytes:
        """A session's evidence; empty when there is none."""
        s = self._suspects.get(name)
        if s is None:
            return b""
        return _RECORD.pack(s.labels, s.harm, s.labels_noise.variance, s.labels_noise.last,
                            s.harm_noise.variance, s.harm_noise.last, s.count, s.most, s.shorter,
                            s.out)

    def restore(self, name: bytes, evidence: bytes) -> None:
        """Take a session's evidence back from what :meth:`evidence` gave."""
        if not evidence:
            return
        s = self._suspects[name] = Suspect()
        (s.labels, s.harm, s.labels_noise.variance, s.labels_noise.last,
         s.harm_noise.variance, s.harm_noise.last, s.count, s.most, s.shorter,
         s.out) = _RECORD.unpack(evidence)

    def forget(self, name: bytes) -> None:
        """Forget a session; what it gave stays in the model, and what was against it counts."""
        gone = self._suspects.pop(name, None)
        if gone is not None:
            self._gone += max(0.0, gone.labels, gone.harm)

    def state(self) -> bytes:
        """How many strikes were given, what is held against those who were forgotten, and the best
        weights, float64."""
        best = b"" if self._best is None else self._best.tobytes()
        return _STATE.pack(self._strikes, self._gone) + best

    def restore_state(self, state: bytes) -> None:
        """Take them back."""
        if state:
            self._strikes, self._gone = _STATE.unpack_from(state)
            best = np.frombuffer(state, np.float64, offset=_STATE.size)
            self._best = best if len(best) else None


def _worse(losses: np.ndarray, others: np.ndarray) -> bool:
    """Whether the losses of the same rows are higher in the mean, by more than chance."""
    by = losses - others
    error = float(by.std()) / math.sqrt(len(by))
    return float(by.mean()) > _WORSE * error + _WORSE_LEAST
