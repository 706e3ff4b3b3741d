"""The privacy loss of one release: the law of what an observer can learn from it.

An observer who sees a release ``z`` and wonders which of two neighbouring data sets it came from
gains ``ln(P(z) / Q(z))``, the *privacy loss*, a random number. How it is distributed decides
everything: single releases, and compositions of thousands (:mod:`client.accounting`). The
derivation, with all proofs and sources, is ``docs/privacy.md``; this is it in numbers.

**One batch.** Replacing a row of the batch shifts the sum of the clipped gradients by at most
``2C``. Shorter shifts are never worse, so ``P`` and ``Q`` are the noise's law, shifted and not.

- *Laplace*: in prolate spheroidal coordinates with foci at 0 and at the shift, the loss is
  ``epsilon sin(phi)`` with ``phi`` in ``[-pi/2, pi/2]`` and density (under ``P``, and with the
  opposite sign under ``Q``) proportional to

      ``exp(+-(epsilon / 2) sin(phi)) cos(phi)^(d-2) (kappa + cos(phi)^2)``,

  ``kappa = (d - 1) (2 / epsilon) K_{d/2}(epsilon / 2) / K_{d/2 - 1}(epsilon / 2)``, with ``K`` the
  modified Bessel function. In many dimensions it stays near 0, with a spread of about
  ``epsilon / sqrt(d)``, and hardly ever comes near ``epsilon``.
- *Gaussian*: with ``mu = 2C / sigma`` the loss is ``mu u``, ``u`` normal around ``+-mu / 2``.

**Drawn from all rows.** A batch of ``b`` out of ``n`` rows without replacement holds the replaced
row with probability ``g = b / n``. Then no release tells more than the loss
``x = ln(1 + g (e^L - 1))`` with ``L > 0`` under ``(1-g) Q + g P``, the loss ``-x`` with ``L > 0``
under ``Q``, and nothing (0) the rest of the time (Balle, Barthe and Gaboardi, NeurIPS 2018; Zhu,
Dong and Wang, AISTATS 2022).

Known limit: integrals are sums over 4096 x 8 points of smooth functions and doubles have 53 bits,
so masses are right to about 1e-13 of themselves; what :data:`client.accounting.FFT_ERROR` takes off
delta covers that. Tails that are not reckoned are below :data:`SLACK`. All that is rounded
otherwise is rounded to the worse side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from client.noise import Floats, Release

PANELS: Final = 4096
"""Pieces into which the losses above 0 are cut."""
SLACK: Final = 1e-20
"""Counted as an infinite loss at each release, for the tails beyond the pieces (below 1e-21)."""

_NODES: Final = 8  # Gauss-Legendre points in each piece
_DEPTH: Final = 50.0  # a density exp(-50) of its maximum is none
_GRID: Final = 1 << 15  # points that look for where the density is


@dataclass(frozen=True, slots=True)
class Masses:
    """A law of privacy losses that sits on finitely many points.

    Attributes:
        losses: ascending, shape (m,).
        masses: their probabilities under the worse of both laws, shape (m,); together 1.
    """

    losses: Floats
    masses: Floats

    @property
    def spread(self) -> float:
        """Root of the mean square loss."""
        return math.sqrt(float(self.masses @ self.losses**2))


@lru_cache(maxsize=256)
def dominating(release: Release) -> Masses:
    """A law that dominates every pair of neighbouring data sets, in either direction.

    Every piece of the true law is moved to its two ends, keeping its probability under both of
    the laws that are compared; that can only help an observer, as whoever is told the end can
    draw the piece's losses himself (Doroshenko, Ghazi, Kamath, Kumar and Manurangsi, "Connect the
    dots", PoPETs 2022).
    """
    losses, upper, lower, ends = _pieces(release, 0.0)
    at = np.concatenate([-ends[::-1], ends[1:]])  # the loss 0 is one point
    masses = np.zeros(len(at))
    zero = len(ends) - 1
    low, high = ends[:-1, None], ends[1:, None]
    down, up = split(losses, upper, low, high)
    masses[zero:-1] += down.sum(axis=1)
    masses[zero + 1:] += up.sum(axis=1)
    down, up = split(-losses, lower, -high, -low)
    masses[zero - 1::-1] += down.sum(axis=1)
    masses[zero:0:-1] += up.sum(axis=1)
    # One dimension is on an end already: with probability 1/2 the loss is as large as it can be.
    if release.mechanism == "laplace" and release.dimension == 1:
        share = release.batch / release.rows
        least = 0.5 * math.exp(-release.epsilon)
        masses[-1] += (1 - share) * least + share * 0.5
        masses[0] += least
    masses[zero] += max(0.0, 1.0 - math.fsum(masses))
    return Masses(at, masses)


def directed(release: Release, *, reverse: bool = False) -> Masses:
    """The law of the loss where data sets differ in the worst way and are told apart one way.

    All rows but one have one gradient, of full length; the one has the opposite of it, or not.
    It is attained, so it is what the best attack on that pair sees (:mod:`lab.audit`), and never
    more than :func:`dominating` once it is composed.

    Args:
        release: the kind.
        reverse: the loss of the data set without the odd row against the one with it.
    """
    losses, upper, lower, ends = _pieces(release, -math.inf)
    masses = np.zeros(len(ends))
    low, high = ends[:-1, None], ends[1:, None]
    if reverse:
        down, up = split(-losses, lower, -high, -low)
        down, up = up, down  # of the ends as they are counted here
    else:
        down, up = split(losses, upper, low, high)
    masses[:-1] += down.sum(axis=1)
    masses[1:] += up.sum(axis=1)
    if release.mechanism == "laplace" and release.dimension == 1:
        share = release.batch / release.rows
        for end, p, q in ((-1, 0.5, 0.5 * math.exp(-release.epsilon)),
                          (0, 0.5 * math.exp(-release.epsilon), 0.5)):
            masses[end] += q if reverse else (1 - share) * q + share * p
    return Masses(-ends[::-1], masses[::-1]) if reverse else Masses(ends, masses)


def split(losses: Floats, masses: Floats, low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """Move masses to the two ends of the pieces that they are in, towards the worse.

    What goes to both ends has together the probability ``m`` under the law of ``masses`` and
    ``m exp(-loss)`` under the other, as before.

    Args:
        losses: between ``low`` and ``high``; masses: of the same shape.
        low, high: the ends, ``low <= high``.

    Returns:
        What goes to ``low`` and what goes to ``high``, each of the shape of ``masses``.
    """
    # A piece of no width (losses so far below 0 that sampling makes them one) is one end.
    flat = high <= low
    width = np.where(flat, 1.0, high - low)
    inside = np.clip(losses, low, high)
    to_high = np.where(flat, 0.0, masses * (np.expm1(low - inside) / np.expm1(-width)))
    to_low = np.where(flat, masses, masses * (np.expm1(high - inside) / np.expm1(width)))
    return to_low, to_high


def on_lattice(law: Masses, interval: float) -> tuple[int, Floats]:
    """The law moved to multiples of an interval, towards the worse.

    Returns:
        The first multiple, and the masses from there on.
    """
    index = np.floor(law.losses / interval)
    first = int(index[0])
    place = (index - first).astype(np.int64)
    low = index * interval
    # Division and product may differ in the last digit: then it is on the other side.
    losses = np.clip(law.losses, low, low + interval)
    down, up = split(losses, law.masses, low, low + interval)
    size = int(place[-1]) + 2
    masses = np.bincount(place, down, size) + np.bincount(place + 1, up, size)
    return first, masses.astype(np.float64)


def sampled(loss: Floats, share: float) -> Floats:
    """``ln(1 + share (e^loss - 1))``: the loss of a row that is drawn with that probability."""
    if share == 1.0:
        return loss
    with np.errstate(over="ignore"):
        small = np.log1p(share * np.expm1(loss))
    large = loss + np.log(share + (1 - share) * np.exp(-np.maximum(loss, 0.0)))
    return np.where(loss < 500.0, small, large)


def _pieces(release: Release, least: float) -> tuple[Floats, Floats, Floats, Floats]:
    """The law of one release, integrated in pieces.

    Args:
        release: the kind.
        least: only losses above this, before sampling.

    Returns:
        Losses after sampling, shape (pieces, nodes); their masses under ``(1-g) Q + g P`` and
        under ``Q``; and the ends of the pieces, as losses, shape (pieces + 1,).
    """
    share = release.batch / release.rows
    edge, log_p, scale = _density(release)
    grid = np.linspace(-edge, edge, _GRID + 2)[1:-1]
    peak = float(log_p(grid).max())
    # Q is P's mirror image, and P the greater one on this side.
    inside = grid[log_p(grid) > peak - _DEPTH]
    top = edge if inside[-1] == grid[-1] else inside[-1]
    whole = np.linspace(-top, top, 2 * PANELS + 1)
    ends = whole[PANELS:] if least == 0.0 else whole
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    half = np.diff(ends)[:, None] / 2
    at = ends[:-1, None] + half * (1 + points)
    weighed = half * weights
    base = scale(at)
    p, q = weighed * np.exp(log_p(at) - peak), weighed * np.exp(log_p(-at) - peak)
    # P above 0 and Q above 0 make 1 together, as Q above 0 is P below it.
    above = ends[:-1] >= 0
    total = float((p + q)[above].sum()) / _continuous(release)
    p, q = p / total, q / total
    return sampled(base, share), (1 - share) * q + share * p, q, sampled(scale(ends), share)


def _continuous(release: Release) -> float:
    """Probability that the loss is above 0 under P or under Q, but for the largest loss, which
    has a probability of its own in one dimension alone: 1 - 1/2 - exp(-epsilon) / 2."""
    if release.mechanism == "laplace" and release.dimension == 1:
        return -0.5 * math.expm1(-release.epsilon)
    return 1.0


def _density(
    release: Release,
) -> tuple[float, Callable[[Floats], Floats], Callable[[Floats], Floats]]:
    """What the loss is a function of: how far that goes to both sides of 0, the logarithm of its
    density under P up to a constant, and the loss."""
    if release.mechanism == "gaussian":
        mu = 2.0 / release.sigma
        return (mu / 2 + math.sqrt(2 * _DEPTH), lambda u: -((u - mu / 2) ** 2) / 2,
                lambda u: mu * u)
    epsilon, d = release.epsilon, release.dimension
    kappa = (d - 1) * (2 / epsilon) * bessel_ratio(d, epsilon / 2) if d > 1 else 0.0

    def log_p(phi: Floats) -> Floats:
        cosine = np.cos(phi)
        tilt = epsilon / 2 * np.sin(phi)
        if d == 1:  # cos^-1 (0 + cos^2); what it misses are the two ends
            return np.asarray(tilt + np.log(cosine))
        return np.asarray(tilt + (d - 2) * np.log(cosine) + np.log(kappa + cosine**2))

    return math.pi / 2, log_p, lambda phi: np.asarray(epsilon * np.sin(phi))


def bessel_ratio(dimension: int, x: float) -> float:
    """``K_{d/2}(x) / K_{d/2 - 1}(x)`` of the modified Bessel functions of the second kind.

    By the recurrence ``K_{v+1} / K_v = K_{v-1} / K_v + 2 v / x`` (NIST DLMF 10.29.1), which only
    adds positive numbers; the functions themselves overflow in many dimensions.

    Args:
        dimension: d, at least 1.
        x: positive.
    """
    if dimension % 2:
        ratio, order = 1.0, -0.5  # K_{1/2} = K_{-1/2}
    else:
        # Imported here: it takes a quarter of a second.
        from scipy.special import k0e, k1e

        ratio, order = float(k1e(x) / k0e(x)), 0.0
    while order < dimension / 2 - 1:
        order += 1
        ratio = 1 / ratio + 2 * order / x
    return ratio
