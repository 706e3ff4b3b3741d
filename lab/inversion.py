"""Inversion: what somebody who watches the training finds out about one client. Pure.

Two things are to be found: the victim's model (paper 5.4 and 7.4) and the victim's rows. Nobody
here is told the truth: an attack gets what was seen (:class:`Seen`), the attacker's own data and
what is public, and nothing else. Each is to be read beside the best guess of somebody who has the
same data and has seen nothing; what is better than that is the attacker's advantage.

The victim's mean gradient at weights w is ``E[sigma(w x) x] - E[y x]``, as long as no gradient is
longer than the clip; with rows of length 1 that is so for a clip of 1. All but the constant
``E[y x]`` depends on the rows' distribution only, which an attacker knows from data of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from accord.objective import OBJECTIVES

_GRADIENTS: Final = OBJECTIVES["logistic"].gradients
_CHUNK: Final = 256
_NEWTON: Final = 50
_HALVINGS: Final = 14
_MATCHING: Final = 200
"""Steps of gradient matching."""
_STARTS: Final = 2
"""Sets of dummies that it begins with, and more where batches are small: a start from which the
label cannot turn round is lost."""
_RATE: Final = 0.1
_RIDGE: Final = 1e-5
_EXACT: Final = 0.02
"""Standard deviation that gradient matching allows for where there is no noise."""
FARTHEST: Final = 15.0
"""About how far from its guess an attacker looks for a model; converged ones are 5 to 10 long."""
MOST: Final = 100.0
"""A penalty that leaves nothing but the guess."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one seat has seen of a training, one entry for each difference it saw.

    Attributes:
        weights: (T, d): the model that the victim is thought to have worked on.
        updates: (T, d): the change of the model that is put down to the victim.
        steps: (T,): the victim's step sizes, which the task tells everybody.
        others: bystanders' updates in each of the changes, on average; 0.0 for whoever sees the
            victim's connection alone.
    """

    weights: np.ndarray
    updates: np.ndarray
    steps: np.ndarray
    others: float = 0.0


# -- the victim's model ------------------------------------------------------------------------


def shadow(seen: Seen) -> np.ndarray:
    """The paper's attack (5.4): every change applied to a shadow model, which begins at 0.

    Returns:
        Weights, shape (d,).
    """
    return np.asarray(seen.updates.sum(axis=0))


def moments(
    seen: Seen, rows: np.ndarray, labels: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """The stronger attack: estimate the victim's ``E[y x]``, then the model that has it.

    Each change gives one estimate, ``update / step + E[sigma(w x) x]``, with the expectation over
    the attacker's own rows; what bystanders add is taken to be what the attacker's own rows would.
    Noise goes away in the mean. Then the answer is the model nearest to ``start`` that the
    evidence permits: the penalty on the distance is the largest with which the remaining
    contradiction is no longer than the error to be expected (Morozov's discrepancy principle), of
    the mean's noise and of knowing other people's rows only. So the more noise there is, the less
    the attacker leaves its guess.

    Args:
        seen: from any seat.
        rows, labels: the attacker's own, (n, d) and (n,).
        start: (d,): its guess without having seen anything; zeros for whoever has none.

    Returns:
        Weights, shape (d,).
    """
    expected, usual = _expected(seen.weights, rows)
    own = (rows * labels[:, None]).mean(axis=0)
    each = seen.updates / seen.steps[:, None] + expected + seen.others * (expected - own)
    target = each.mean(axis=0)
    noise = float(each.var(axis=0, ddof=1).sum()) / len(each)
    # As far as the answer is from where the victim was seen, the attacker relies on its own rows
    # instead of the victim's; and on them for bystanders, each of whom has others.
    bystanders = seen.others * (1 + seen.others) * _doubt((usual - labels), rows)
    first = _nearest(rows, target, start, math.sqrt(noise))
    victim = 2 * _doubt(_chance(rows @ first) - usual, rows)
    return _nearest(rows, target, start, math.sqrt(noise + victim + bystanders))


def _chance(margins: np.ndarray) -> np.ndarray:
    """sigma, which does not overflow as this."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * margins)))


def _doubt(factors: np.ndarray, rows: np.ndarray) -> float:
    """The squared error (summed over d) of the mean of ``factor x`` over as many rows as these."""
    return float((factors[:, None] * rows).var(axis=0, ddof=1).sum()) / len(rows)


def _expected(models: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E[sigma(w x) x] over the rows (n, d), for each model of (T, d), shape (T, d); and for each
    row the mean of sigma(w x) over the models, shape (n,)."""
    found, total = [], np.zeros(len(rows))
    for i in range(0, len(models), _CHUNK):
        chance = _chance(models[i:i + _CHUNK] @ rows.T)
        found.append(chance @ rows / len(rows))
        total += chance.sum(axis=0)
    return np.concatenate(found), total / len(models)


def _nearest(
    rows: np.ndarray, target: np.ndarray, start: np.ndarray, noise: float
) -> np.ndarray:
    """The weights nearest to ``start`` with |E[sigma(w x) x] - target| no more than ``noise``."""
    # Noise may point where no weights lead: then none but the nearest are to be believed.
    low, high = math.log(max(1.0 / len(rows), noise / FARTHEST)), math.log(MOST)
    weights = start
    # What is left is the penalty times the distance, and grows with the penalty.
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        weights = _penalised(rows, target, start, math.exp(middle), weights)
        left = math.exp(middle) * float(np.linalg.norm(weights - start))
        low, high = (middle, high) if left < noise else (low, middle)
    return _penalised(rows, target, start, math.exp(low), weights)


def _penalised(
    rows: np.ndarray, target: np.ndarray, start: np.ndarray, penalty: float, weights: np.ndarray
) -> np.ndarray:
    """Where ``E[sigma(w x) x] - target + penalty (w - start)`` is 0, by Newton's method."""
    identity = penalty * np.eye(len(target))
    for _ in range(_NEWTON):
        chance = _chance(rows @ weights)
        slope = rows.T @ chance / len(rows) - target + penalty * (weights - start)
        bend = (rows * (chance * (1 - chance))[:, None]).T @ rows / len(rows) + identity
        step = np.linalg.solve(bend, slope)
        length = float(np.linalg.norm(step))
        weights = weights - step * min(1.0, 5.0 / length if length else 1.0)
        if length < 1e-6:
            break
    return weights


def distances(model: np.ndarray, truth: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """How far a model is from the victim's true one.

    Args:
        model, truth: weights, (d,).
        rows: (n, d), of nobody.

    Returns:
        ``disagreement``, the paper's reconstruction error: the share of rows that the two answer
        differently. ``balanced``: the mean of that share among the rows that the true model
        answers with 1 and among those it answers with 0, so that a constant answer has 0.5.
        ``angle``: 1 minus the cosine between the weights, from 0 to 2.
    """
    guesses, answers = rows @ model > 0, rows @ truth > 0
    wrong = guesses != answers
    kinds = [float(wrong[kind].mean()) for kind in (answers, ~answers) if kind.any()]
    return {"disagreement": float(wrong.mean()), "balanced": sum(kinds) / len(kinds),
            "angle": 1.0 - _cosine(model, truth)}


def guesses(own: np.ndarray) -> list[np.ndarray]:
    """Models that can be had without seeing anything: always 0, always 1, a model trained on other
    people's data (d,), and that one turned round."""
    always = np.zeros(len(own))
    always[-1] = 1.0  # the constant column, which is positive in every row
    return [-always, always, own, -own]


def best_guess(
    found: Sequence[np.ndarray], truth: np.ndarray, rows: np.ndarray
) -> dict[str, float]:
    """For each of :func:`distances`, the least of any of these guesses: whoever guesses is lucky
    in its choice, so that no attack looks better than it is."""
    each = [distances(guess, truth, rows) for guess in found]
    return {name: min(one[name] for one in each) for name in each[0]}


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / length if length else 0.0


# -- the victim's rows -------------------------------------------------------------------------


def noise_variance(dimension: int, batch: int, clip: float, epsilon: float | None) -> float:
    """Of one number of a release, ``(d + 1) (2 C / epsilon)^2 / b^2``; the radius is
    Gamma(d, 2 C / epsilon). 0 where epsilon is None."""
    return 0.0 if epsilon is None else (dimension + 1) * (2 * clip / epsilon / batch) ** 2


def direction(release: np.ndarray, batch: int, variance: float, usual: np.ndarray) -> np.ndarray:
    """The row that one release shows, in closed form.

    Of a batch of one, a release is ``(sigma - y) x`` and noise: the row itself up to its length,
    which is known to be 1, and its sign, which the constant column tells (and with it the label).
    Of larger batches it is a weighted sum of rows. Noise is taken out as far as a linear filter
    can (Wiener's) that knows the moments of other people's gradients.

    Args:
        release: (d,): the update divided by minus its step size.
        batch: how many rows it was made of.
        variance: of the noise in each of its numbers.
        usual: gradients of other people's rows at the same weights, (n, d).

    Returns:
        A row of length 1, shape (d,).
    """
    if variance > 0:
        mean = usual.mean(axis=0)
        second = (usual.T @ usual / len(usual) + (batch - 1) * np.outer(mean, mean)) / batch
        release = second @ np.linalg.solve(second + variance * np.eye(len(mean)), release)
    length = float(np.linalg.norm(release))
    return release / (math.copysign(length, release[-1]) if length else 1.0)


def match(
    release: np.ndarray, weights: np.ndarray, batch: int, clip: float, variance: float,
    public: np.ndarray, rng: np.random.Generator,
) -> np.ndarray:
    """Gradient matching (Zhu, Liu and Han, "Deep leakage from gradients", NeurIPS 2019): dummy
    rows and labels whose release is the one that was seen.

    Minimised by Adam, from several sets of public rows: the squared mismatch in units of
    the noise's variance, and, as there are more unknowns than numbers, how unusual each dummy is
    among public rows (its Mahalanobis distance). Dummies are kept at length 1.

    Args:
        release, weights: (d,).
        batch: how many rows the release was made of.
        clip: C; with rows of length 1 it bounds ``|sigma - y|``.
        variance: of the noise in each number of the release.
        public: rows of other people, (n, d).
        rng: for the beginning.

    Returns:
        The dummy rows of the start that ended best, (batch, d).
    """
    spread = max(batch ** 2 * variance, _EXACT ** 2)
    middle = public.mean(axis=0)
    # Dummies are points in the coordinates in which public rows are round.
    shape = np.linalg.cholesky(np.cov(public.T) + _RIDGE * np.eye(len(middle)))
    starts = max(_STARTS, 16 // batch)
    first = public[rng.integers(len(public), size=(starts, batch))]
    points = np.linalg.solve(shape, (first - middle)[..., None])[..., 0]
    odds = 4.0 * rng.integers(0, 2, size=(starts, batch, 1)) - 2.0
    state = np.concatenate([points, odds], axis=2)
    pace, force = np.zeros_like(state), np.zeros_like(state)
    for t in range(1, _MATCHING + 1):
        slope = _mismatch(state, release * batch, weights, clip, spread, middle, shape)[1]
        pace, force = 0.9 * pace + 0.1 * slope, 0.99 * force + 0.01 * slope ** 2
        size = np.sqrt(force / (1 - 0.99 ** t)) + 1e-12
        state = state - _RATE * (1 - t / (_MATCHING + 1)) * pace / (1 - 0.9 ** t) / size
    best = int(_mismatch(state, release * batch, weights, clip, spread, middle, shape)[0].argmin())
    return _dummies(state[best, :, :-1], middle, shape)[0]


def _dummies(
    points: np.ndarray, middle: np.ndarray, shape: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of length 1 that these points stand for, and their lengths before, (..., 1)."""
    rows = middle + points @ shape.T
    length = np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-9)
    return rows / length, length


def _mismatch(
    state: np.ndarray, total: np.ndarray, weights: np.ndarray, clip: float, spread: float,
    middle: np.ndarray, shape: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """What gradient matching minimises, (starts,), and its slope. The state is (starts, batch,
    d + 1): each dummy's point, and the log odds of its label; ``total`` is batch times release."""
    points, odds = state[..., :-1], state[..., -1]
    rows, length = _dummies(points, middle, shape)
    chance, label = _chance(rows @ weights), _chance(odds)
    whole = chance - label
    factor = np.clip(whole, -clip, clip)
    off = (factor[..., None] * rows).sum(axis=1, keepdims=True) - total
    loss = (off ** 2).sum(axis=(1, 2)) / (2 * spread) + (points ** 2).sum(axis=(1, 2)) / 2
    along = (np.abs(whole) < clip) * (rows * off).sum(axis=-1) / spread
    slope = factor[..., None] * off / spread + (along * chance * (1 - chance))[..., None] * weights
    slope = (slope - (slope * rows).sum(axis=-1, keepdims=True) * rows) / length
    return loss, np.concatenate(
        [slope @ shape + points, (-along * label * (1 - label))[..., None]], axis=2)


def blind(public: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Rows (d,) that can be guessed without seeing anything: the mean of public rows (n, d), their
    main direction both ways, and somebody else's row."""
    middle = public.mean(axis=0)
    main = np.linalg.svd(public[:, :-1] - middle[:-1], full_matrices=False)[2][0]
    return [middle, np.append(main, 0.0), np.append(-main, 0.0), public[rng.integers(len(public))]]


def likeness(found: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """For each row found (m, d), the cosine with the most similar of the true rows (b, d); the
    constant column, which everybody knows, is left out. Shape (m,)."""
    def features(of: np.ndarray) -> np.ndarray:
        part = of[:, :-1]
        return np.asarray(part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12))

    return np.asarray((features(found) @ features(rows).T).max(axis=1))


def membership(
    release: np.ndarray, weights: np.ndarray, rows: np.ndarray, labels: np.ndarray,
    own: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """A score for each candidate row: the higher, the more likely the victim holds it.

    It is the projection of the release, less what other people's data would give, on the
    candidate's own gradient (as Dwork et al., "Robust traceability from trace amounts", FOCS
    2015).

    Args:
        release: (d,), the mean of any number of releases at the same weights.
        weights: (d,).
        rows, labels: candidates, (m, d) and (m,).
        own: rows (n, d) and labels (n,) of other people.

    Returns:
        Shape (m,).
    """
    usual = _GRADIENTS(weights, *own).mean(axis=0)
    return np.asarray((_GRADIENTS(weights, rows, labels) - usual) @ (release - usual))
