"""From how often an attack was right to an epsilon that is given away at least.

``P'(E) <= e^epsilon P(E) + delta`` for every event E, hence ``epsilon >= ln((P'(E) - delta) /
P(E))``. Both chances are taken from their counts by the exact limits of Clopper and Pearson ("The
use of confidence or fiducial limits illustrated in the case of the binomial", Biometrika 26, 1934),
each with half of the error. The event is chosen on other plays than it is counted on, so that no
choice, however lucky, makes the bound less sure.

Here ``D`` and ``D'`` are any two data sets, and an attack is any number made of what was seen;
:mod:`lab.audit` has those of this project.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from client.noise import Floats

_CARE: Final = 1e-2
"""The event is chosen by bounds that are surer by so much, lest the luckiest of hundreds win."""


def at_least(count: npt.ArrayLike, plays: int, error: float) -> Floats:
    """Clopper and Pearson's lower limit of a chance: wrong with probability ``error`` at most.

    Args:
        count: how often it came true, of any shape.
        plays: out of how many independent ones.
        error: between 0 and 1, both excluded.
    """
    from scipy.special import betaincinv

    k = np.asarray(count, dtype=np.float64)
    return np.where(k > 0, betaincinv(np.maximum(k, 1), plays - k + 1, error), 0.0)


def at_most(count: npt.ArrayLike, plays: int, error: float) -> Floats:
    """Clopper and Pearson's upper limit of a chance; as :func:`at_least`."""
    return 1.0 - at_least(plays - np.asarray(count, dtype=np.float64), plays, error)


def epsilon_at_least(
    hits: npt.ArrayLike, alarms: npt.ArrayLike, plays: int, delta: float, error: float
) -> Floats:
    """The epsilon that is shown by an event which came true so often.

    Args:
        hits: times with the one data set, of any shape.
        alarms: times with the other, of the same shape.
        plays: with each.
        delta: as of the epsilon that this is to be compared with.
        error: probability at most that the true epsilon is less; half for each of both chances.
    """
    chance = at_least(hits, plays, error / 2) - delta
    with np.errstate(divide="ignore"):
        bound = np.log(np.maximum(chance, 0.0)) - np.log(at_most(alarms, plays, error / 2))
    return np.asarray(np.maximum(bound, 0.0))


@dataclass(frozen=True, slots=True)
class Event:
    """What the attacker watches for: ``sign * score > threshold``.

    Attributes:
        score: whose.
        sign: 1 or -1.
        odd: it speaks for D', else for D.
        threshold: finite.
    """

    score: str
    sign: int
    odd: bool
    threshold: float

    def count(self, told: Mapping[str, Floats]) -> int:
        """In how many plays it came true."""
        return int((self.sign * told[self.score] > self.threshold).sum())


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of an attack.

    Attributes:
        epsilon: at least so much is given away; 0 where nothing was shown.
        event: what was watched for.
        hits: how often it came true with the data set that it speaks for,
        alarms: and with the other one,
        plays: in so many plays with each.
        right: share of all guesses that were right where data sets are told apart as often as
            possible, rather than with the most certainty.
    """

    epsilon: float
    event: Event
    hits: int
    alarms: int
    plays: int
    right: float


def attack(
    even: Mapping[str, Floats], odd: Mapping[str, Floats], delta: float, error: float
) -> Finding:
    """Choose by the first half of the plays, measure by the second.

    Args:
        even: the scores of the plays with D, by name.
        odd: of as many with D'; at least four.
        delta: as for :func:`epsilon_at_least`; error: likewise.
    """
    half = len(next(iter(even.values()))) // 2

    def part(told: Mapping[str, Floats], plays: slice) -> dict[str, Floats]:
        return {name: each[plays] for name, each in told.items()}

    surest = widest = Event("likelihood ratio", 1, True, 0.0)
    most, gap = -1.0, -1.0
    before = part(even, slice(half)), part(odd, slice(half))
    for name, sign, is_odd in itertools.product(even, (1, -1), (True, False)):
        null, other = (sign * before[which][name] for which in (not is_odd, is_odd))
        for thresholds, alarms, hits in _counts(null, other):
            bounds = epsilon_at_least(hits, alarms, half, delta, error * _CARE)
            best, far = int(bounds.argmax()), int((hits - alarms).argmax())
            if bounds[best] > most:
                most = float(bounds[best])
                surest = Event(name, sign, is_odd, float(thresholds[best]))
            if hits[far] - alarms[far] > gap:
                gap = float(hits[far] - alarms[far])
                widest = Event(name, sign, is_odd, float(thresholds[far]))
    after = part(even, slice(half, 2 * half)), part(odd, slice(half, 2 * half))
    true, false = surest.count(after[surest.odd]), surest.count(after[not surest.odd])
    won = widest.count(after[widest.odd]) + half - widest.count(after[not widest.odd])
    return Finding(float(epsilon_at_least(true, false, half, delta, error)), surest, true, false,
                   half, won / (2 * half))


def _counts(null: Floats, other: Floats) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Thresholds worth a try, and how often both pass them; nothing where there are none."""
    low, high = (np.sort(each[~np.isnan(each)]) for each in (null, other))
    if not len(low) or not len(high):
        return
    # Dense where hardly anything passes: there the ratio is greatest.
    ranks = np.unique(np.concatenate([[1], np.geomspace(1, len(low), 100).astype(np.int64)]))
    more = np.unique(np.geomspace(1, len(high), 50).astype(np.int64))
    thresholds = np.concatenate([low[-ranks], high[-more]])
    alarms, hits = (len(each) - np.searchsorted(each, thresholds, "right").astype(np.float64)
                    for each in (low, high))
    yield thresholds, alarms, hits
