"""An attack on the client's own privacy: how much do real updates give away, at the very least?

:mod:`client.accounting` proves that an epsilon is *not exceeded*, provided that the code does what
the proof is about. This plays the game that epsilon is a statement on, against the real
:class:`client.trainer.Trainer` and :func:`client.noise.generator`, and infers an epsilon that *is*
reached. Where the second is above the first, the code or the proof is wrong. The other way round
nothing is proven: an attack that finds nothing may be a weak one. That is why each result stands
beside the ideal one, what the best possible attack on flawless code comes to in as many plays
(Jagielski, Ullman and Oprea, "Auditing differentially private machine learning", NeurIPS 2020;
Nasr, Songi, Thakurta, Papernot and Carlini, "Adversary instantiation", IEEE S&P 2021).

**The game.** Two data sets differ in one row, the canary, whose gradient is a thousand times as
long as the clip: along ``-e1`` in the one, ``D``, along ``+e1`` in the other, ``D'``. All else is
known: the other rows, where the canary stands, the weights (zero), each update. The other rows'
gradients are ``-C e1`` (*against* the canary of D'; then one release is the worst pair there is,
:func:`client.privacy_loss.directed`) or 0 (*none*). With weights w the gradient of logistic
regression is ``(sigmoid(w.x) - y) x``, so that rows ``+-2 C e1`` have these gradients at w = 0.

**The attack.** Each of :func:`scores` makes a number of a play's updates: the likelihood ratio,
which nothing beats on flawless code (Neyman and Pearson), and others that it is blind to, for
mistakes such as noise that repeats or ends somewhere. The first half of the plays picks one score
and one threshold; the second half counts how often the threshold is passed on D' and on D.

**The bound** holds with the confidence that was asked for (:mod:`lab.audit_bounds`): of audits of
flawless code, at most the share ``error`` is above the true epsilon, and fewer above the ledger's.
Both directions, and falling short of the threshold as well as passing it, are tried.

Known limits: what is not in an update is not seen here, such as how long it took; nor is what
float32 rounds away, nor what :mod:`client.work` does with its generators. What a thousandth of all
plays gives away, delta for one, needs many thousands of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from accord.schema import Field, Schema
from accord.task import Task, Training, Validation
from client import noise
from client.accounting import epsilon_total
from client.dataset import Dataset
from client.noise import Floats, Release
from client.trainer import Trainer
from lab.adversary import counter
from lab.audit_bounds import Finding, attack

Others = Literal["against", "none"]

CLIP: Final = 0.5
CANARY: Final = 1000.0
"""Length of the canary's gradient before it is clipped, in clips."""
REHEARSALS: Final = 50
"""Plays on D that the attacker has made at home, and whose outputs he knows again."""
REPEATS: Final = 25
"""Attacks on exact draws, whose median is the ideal result."""

_SAME: Final = 1e-5  # of the shift: rounding to float32 is less, chance almost never
_FAR: Final = 100  # updates that are further apart are not compared with each other
_STEP: Final = 1.0


@dataclass(frozen=True, slots=True)
class Game:
    """What is played.

    Attributes:
        kind: of each release, as the ledger is told.
        updates: releases in one play; all are seen.
        others: what the gradients of the other rows are: ``against`` the odd canary, of full
            length, or ``none``.

    Raises:
        ValueError: the dimension is below 2, which no task has, or there are no updates.
    """

    kind: Release
    updates: int = 1
    others: Others = "against"

    def __post_init__(self) -> None:
        if self.kind.dimension < 2 or self.updates < 1:
            raise ValueError(f"no task makes {self.updates} updates of {self.kind.dimension}")

    @property
    def share(self) -> float:
        """The probability that a batch holds the canary."""
        return self.kind.batch / self.kind.rows

    def centre(self, odd: bool, inside: bool) -> float:
        """Sum of the clipped gradients along e1, in units of C.

        Args:
            odd: in D', else in D.
            inside: whether the batch holds the canary.
        """
        canary = (1.0 if odd else -1.0) if inside else 0.0
        if self.others == "none":
            return canary
        return canary - (self.kind.batch - inside)

    def ledger(self, delta: float) -> float:
        """The epsilon that a client's ledger shows after one play."""
        return epsilon_total({self.kind: self.updates}, delta)


@dataclass(frozen=True, slots=True)
class Views:
    """What was seen of some plays with one data set; releases as sums, in units of C.

    Attributes:
        along: each release's part along e1, shape (plays, updates).
        across: the length of the rest of it, of the same shape.
        place: which row the canary was, shape (plays,).
    """

    along: Floats
    across: Floats
    place: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.along)

    def __getitem__(self, plays: slice) -> Views:
        return Views(self.along[plays], self.across[plays], self.place[plays])

    @staticmethod
    def joined(parts: list[Views]) -> Views:
        """All plays of some, in their order."""
        return Views(np.concatenate([p.along for p in parts]),
                     np.concatenate([p.across for p in parts]),
                     np.concatenate([p.place for p in parts]))

    def distance(self, centre: float) -> Floats:
        """How far each release is from a point on e1, shape (plays, updates)."""
        return np.asarray(np.hypot(self.along - centre, self.across))


def task_of(dimension: int) -> Task:
    """A task whose updates are the releases themselves, but for the sign."""
    columns = tuple(Field(name=f"x{i}", type="boolean") for i in range(1, dimension))
    return Task(
        title="Audit", description="A game against the client's own noise.",
        data=Schema(fields=(*columns, Field(name="y", type="boolean")), target="y"),
        training=Training(step=_STEP, schedule="constant", clip=CLIP, max_norm=1e30),
        validation=Validation(digest="0" * 64))


def play(
    game: Game, plays: int, odd: bool, places: np.random.Generator,
    source: Callable[[], np.random.Generator] | None = None,
) -> Views:
    """Let the real trainer make the updates of some plays.

    Args:
        game: what is played.
        plays: how often.
        odd: with D', else with D.
        places: draws where the canary stands, which the attacker knows.
        source: a generator for each update; by default :func:`client.noise.generator`, one keyed
            afresh each time, as in :mod:`client.work`. Another one is for tests only.
    """
    kind = game.kind
    task = task_of(kind.dimension)
    rows, labels = np.zeros((kind.rows, kind.dimension)), np.ones(kind.rows)
    if game.others == "against":
        rows[:, 0] = 2 * CLIP
    along = np.empty((plays, game.updates))
    across = np.empty((plays, game.updates))
    mine = Dataset(rows, labels, "", Path())
    place = _places(kind, plays, places)
    rng: np.random.Generator | None = None
    for number, canary in enumerate(place):
        common = rows[canary, 0]
        rows[canary, 0] = 2 * CLIP * CANARY
        labels[canary] = 0.0 if odd else 1.0
        trainer = Trainer(task, mine, kind, counter())
        for update in range(game.updates):
            # Looked up each time: what is audited is what a client would get now.
            rng = noise.generator(rng) if source is None else source()
            step = trainer.update(np.zeros(kind.dimension), rng).delta.astype(np.float64)
            seen = step * (-kind.batch / (_STEP * CLIP))
            along[number, update] = seen[0]
            across[number, update] = np.linalg.norm(seen[1:])
        rows[canary, 0], labels[canary] = common, 1.0
    return Views(along, across, place)


def exact(game: Game, plays: int, odd: bool, rng: np.random.Generator) -> Views:
    """Plays of flawless code, drawn from the laws themselves and by none of the client's code."""
    kind, shape = game.kind, (plays, game.updates)
    along = rng.standard_normal(shape)
    across = np.sqrt(rng.chisquare(kind.dimension - 1, shape))
    if kind.mechanism == "gaussian":
        along, across = kind.sigma * along, kind.sigma * across
    else:
        scale = rng.gamma(kind.dimension, 2 / kind.epsilon, shape) / np.hypot(along, across)
        along, across = scale * along, scale * across
    inside = rng.random(shape) < game.share
    along += np.where(inside, game.centre(odd, True), game.centre(odd, False))
    return Views(along, across, _places(kind, plays, rng))


def _places(kind: Release, plays: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Where the canary stands: anywhere, but first in half of the plays at least, as a batch that
    is no fresh draw is most likely made of the first rows."""
    return np.where(rng.random(plays) < 0.5, 0, rng.integers(kind.rows, size=plays))


# -- what the attacker looks at --------------------------------------------------------------

def likelihood(game: Game, views: Views) -> Floats:
    """``ln P'(z) / P(z)`` of each release by the laws that it should have, shape (plays,
    updates)."""
    with np.errstate(divide="ignore"):  # a canary that is never left out
        inside, outside = np.log(game.share), np.log1p(-game.share)

    def density(odd: bool, canary: bool) -> Floats:
        distance = views.distance(game.centre(odd, canary))
        if game.kind.mechanism == "gaussian":
            return np.asarray(-np.square(distance / game.kind.sigma) / 2)
        return np.asarray(-game.kind.epsilon / 2 * distance)

    def law(odd: bool) -> Floats:
        return np.asarray(np.logaddexp(inside + density(odd, True), outside + density(odd, False)))

    return np.asarray(law(True) - law(False))


def scores(game: Game, views: Views, rehearsed: Views) -> dict[str, Floats]:
    """What the attacker makes of plays: numbers that might be larger on D' than on D, or smaller.

    Args:
        game: what is played.
        views: the plays.
        rehearsed: plays on D that he made himself.

    Returns:
        Shape (plays,) each, by what they are. Not-a-number is neither large nor small.
    """
    ratio = likelihood(game, views)
    told = {
        "likelihood ratio": ratio.sum(axis=1),
        "likelihood ratio where the canary is the first row":
            np.where(views.place == 0, ratio.sum(axis=1), np.nan),
        "sum of all updates": views.along.sum(axis=1),
    }
    for words, odd in (("D", False), ("D'", True)):
        distance = views.distance(game.centre(odd, True))
        told[f"farthest update from the centre of {words}"] = distance.max(axis=1)
        told[f"nearest update to the centre of {words}"] = distance.min(axis=1)
    place = views.along + 1j * views.across
    known = np.unique(rehearsed.along + 1j * rehearsed.across)
    told["updates that D made before"] = np.isin(place, known).sum(axis=1).astype(np.float64)
    if game.updates > 1:
        shift = abs(game.centre(True, True) - game.centre(True, False))
        repeats, shifted = np.zeros(len(views)), np.zeros(len(views))
        for apart in range(1, min(game.updates, _FAR + 1)):
            step = np.abs(views.along[:, apart:] - views.along[:, :-apart])
            level = np.abs(views.across[:, apart:] - views.across[:, :-apart]) < _SAME * shift
            repeats += (level & (step < _SAME * shift)).sum(axis=1)
            shifted += (level & (np.abs(step - shift) < _SAME * shift)).sum(axis=1)
        told["updates that are repeated"] = repeats
        told["updates that are repeated, shifted by the canary"] = shifted
    return told


# -- results -------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Ideal:
    """What the likelihood ratio shows of flawless code; medians of :data:`REPEATS` attacks.

    Attributes:
        epsilon: as of :class:`Finding`.
        right: likewise.
        spread: the epsilons' middle 80 %.
    """

    epsilon: float
    right: float
    spread: tuple[float, float]


def ideal(game: Game, plays: int, delta: float, error: float, rng: np.random.Generator) -> Ideal:
    """The same attack on as many exact draws, again and again."""
    found = []
    for _ in range(REPEATS):
        told = [{"likelihood ratio": likelihood(game, exact(game, plays, odd, rng)).sum(axis=1)}
                for odd in (False, True)]
        found.append(attack(told[0], told[1], delta, error))
    epsilons = [each.epsilon for each in found]
    low, middle, high = np.quantile(epsilons, [0.1, 0.5, 0.9])
    return Ideal(float(middle), float(np.median([each.right for each in found])),
                 (float(low), float(high)))


@dataclass(frozen=True, slots=True)
class Verdict:
    """One game's results beside one another.

    Attributes:
        game: what was played.
        ledger: the epsilon that is not exceeded, as a client is told.
        ideal: what the best attack on flawless code shows in as many plays.
        finding: what was shown.
    """

    game: Game
    ledger: float
    ideal: Ideal
    finding: Finding

    @property
    def broken(self) -> bool:
        """More is given away than the ledger says."""
        return self.finding.epsilon > self.ledger


def judge(game: Game, even: Views, odd: Views, delta: float, error: float,
          rng: np.random.Generator) -> Verdict:
    """Attack the plays of a game.

    Args:
        game: what was played.
        even: plays with D, of which the first :data:`REHEARSALS` are the attacker's own.
        odd: plays with D', as many but for those.
        delta: of the ledger's figure.
        error: probability at most of a bound that is too large.
        rng: for the ideal result.
    """
    rehearsed, even = even[:REHEARSALS], even[REHEARSALS:]
    finding = attack(scores(game, even, rehearsed), scores(game, odd, rehearsed), delta, error)
    return Verdict(game, game.ledger(delta), ideal(game, len(odd), delta, error, rng), finding)
