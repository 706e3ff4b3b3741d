"""What many releases come to: one (epsilon, delta) for all that a data set has ever given.

Two upper bounds, and the smaller one counts:

- *as what they are*: the law of one release's privacy loss (:mod:`client.privacy_loss`), composed
  as often as it was released. Dominating laws compose to dominating laws, also where each release
  depends on what was published before (Zhu, Dong and Wang, "Optimal accounting of differential
  privacy via characteristic function", AISTATS 2022, Theorem 10);
- *as any epsilon'-differentially private mechanism* (:attr:`client.noise.Release.amplified`), for
  Laplace noise: coarser by far in more than a few dimensions, and independent of all that the
  first one reckons.

The composing is done by ``dp_accounting``, on a lattice of losses.

Known limit: the theorems take kinds and counts as fixed beforehand. Within a task they are.
Choosing the next task's epsilon by how an earlier one went is not covered (see Rogers, Roth, Ullman
and Vadhan, "Privacy odometers and filters", NIPS 2016), and :func:`client.plan.plan` does choose it
by what earlier ones left.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

import numpy as np

from accord.problems import BUDGET_SMALL, Problem
from accord.words import number
from client.noise import MOST_GAUSSIAN, Mechanism, Release
from client.privacy_loss import SLACK, dominating, on_lattice

MAX_RELEASES: Final = 10_000_000
"""Most releases composed; past it the plain sum counts. One a second for four months."""

FFT_ERROR: Final = 1e-11
"""Taken off delta, so that the Fourier transform's rounding cannot make a total too small.

Against exact binomial sums, for up to ``MAX_RELEASES`` releases and delta up to 1e-3, the delta
that comes out of the transforms is wrong by less than half of this; near delta = 1 by some 1e-9.
(Taken as it is, it *is* too small: for a million releases at delta = 1e-9 by up to 3e-4 of epsilon,
in one transform.)"""

_POINTS: Final = 1 << 17  # lattice points that a composition of laws may take, roughly
_FINE: Final = 256  # lattice points in the spread of one release's loss, where so many are few
_HELD: Final = 1 << 16  # lattice points that one release's loss may take
_TAIL: Final = 1e-17  # mass cut off at each transform; the library counts it as infinite loss
_LARGE_EPSILON: Final = 500.0  # beyond, exp() overflows in the library and the sum is as good
_SMALL_EPSILON: Final = 1e-12  # below, the sum is nothing anyway

_Counts = tuple[tuple[Release, int], ...]


def epsilon_total(counts: Mapping[Release, int], delta: float) -> float:
    """The epsilon, at ``delta``, of releasing each kind that many times; an upper bound.

    Grows with every count, and is never more than the plain sum of the epsilon'. Infinite where
    Gaussian noise is beyond what can be composed.

    Args:
        counts: how many releases of each kind; zero is allowed.
        delta: between 0 and 0.5, both excluded. Under 2e-11 the plain sum counts.

    Raises:
        ValueError: a negative count, or delta out of its range.
    """
    kinds = _checked(counts, delta)
    pure = pure_total(counts, delta)
    return min(pure, _tight(kinds, delta)) if kinds else pure


def pure_total(counts: Mapping[Release, int], delta: float) -> float:
    """:func:`epsilon_total` by the second bound alone: nothing is used of the noise but that one
    release is epsilon'-differentially private. Infinite where one has Gaussian noise.

    For a single kind it is the optimal composition of Kairouz, Oh and Viswanath ("The composition
    theorem for differential privacy", ICML 2015) to about 1e-4. For several kinds each epsilon' is
    first rounded up to a common lattice, which adds up to 1 % for ten thousand releases of similar
    size, and more for more of them.
    """
    kinds = _checked(counts, delta)
    if any(release.mechanism != "laplace" for release, _ in kinds):
        return math.inf
    # What tells two kinds apart for this purpose is their epsilon' alone.
    merged: Counter[float] = Counter()
    for release, count in kinds:
        merged[release.amplified] += count
    return _pure(tuple(sorted(merged.items())), delta)


def affordable(
    release: Release, budget: float, delta: float, already: Mapping[Release, int] | None = None
) -> int:
    """The largest number of further releases after which the total is still within the budget.

    Found by narrowing on :func:`epsilon_total`, so ``total(T) <= budget < total(T + 1)``; at most
    what makes :data:`MAX_RELEASES` in all.

    Args:
        release: the kind to be released.
        budget: the epsilon not to be exceeded.
        delta: as for :func:`epsilon_total`.
        already: what was released before from the same data set.

    Raises:
        Problem: ``BUDGET_SMALL``, not even one.
        ValueError: as :func:`epsilon_total`.
    """
    before = dict(already or {})
    most = MAX_RELEASES - sum(before.values())

    def total(more: int) -> float:
        return epsilon_total({**before, release: before.get(release, 0) + more}, delta)

    first = total(1)
    if first > budget or most < 1:
        left = max(0.0, budget - epsilon_total(before, delta))
        one = epsilon_total({release: 1}, delta)
        raise Problem(BUDGET_SMALL, what="One update alone", first=number(one), left=number(left))
    enough, beyond = 1, 2
    if _SMALL_EPSILON <= release.epsilon <= _LARGE_EPSILON:
        # Near the place, as totals grow about as the root of the count.
        enough = max(1, min(most, int((budget / (5 * dominating(release).spread)) ** 2)))
        while enough > 1 and total(enough) > budget:
            enough = max(1, enough // 4)
        beyond = 2 * enough
    while beyond < most and total(beyond) <= budget:
        enough, beyond = beyond, 4 * beyond
    if beyond >= most:
        if total(most) <= budget:
            return most
        beyond = most
    return _largest(total, budget, enough, beyond, float)


def _largest(
    total: Callable[[int], float], budget: float, enough: int, beyond: int,
    amount: Callable[[int], float],
) -> int:
    """The largest number between two at which a total is still within the budget.

    Args:
        total: grows with the number.
        budget: not to be exceeded.
        enough: a number at which it is not; beyond: one at which it is.
        amount: what a number stands for; the total grows about as a power of that.
    """
    while beyond - enough > 1:
        size = beyond - enough
        low, high, at_low, at_high = amount(enough), amount(beyond), total(enough), total(beyond)
        guess = (enough + beyond) // 2
        if 0 < at_low < budget < at_high < math.inf:
            # The straight line between the ends, on logarithmic scales.
            part = math.log(budget / at_low) / math.log(at_high / at_low)
            wanted = low * (high / low) ** part
            guess = bisect.bisect_right(range(enough, beyond), wanted, key=amount) + enough - 1
        # After it a step to each side, as it is nearly right and one end would hardly move; and
        # the middle where it was not.
        for count in (guess, guess + 1, guess - 1):
            enough, beyond = _narrowed(total, budget, enough, beyond, count)
        if 2 * (beyond - enough) > size:
            enough, beyond = _narrowed(total, budget, enough, beyond, (enough + beyond) // 2)
    return enough


def _narrowed(
    total: Callable[[int], float], budget: float, enough: int, beyond: int, between: int
) -> tuple[int, int]:
    """The bracket, after a look at a number; as it was if that is not inside."""
    if not enough < between < beyond:
        return enough, beyond
    return (between, beyond) if total(between) <= budget else (enough, between)


def affordable_epsilon(
    budget: float, delta: float, updates: int, batch: int, rows: int, dimension: int,
    mechanism: Mechanism = "laplace", already: Mapping[Release, int] | None = None,
) -> float:
    """The largest epsilon of one release at which so many of them stay within a budget.

    Of those with three digits, so that it can be typed again.

    Args:
        budget: the epsilon not to be exceeded in all, at ``delta``.
        delta: as for :func:`epsilon_total`; also each Gaussian release's own.
        updates: how many releases there will be.
        batch, rows, dimension, mechanism: as of :class:`client.noise.Release`.
        already: what was released before from the same data set.

    Raises:
        Problem: ``BUDGET_SMALL``, not even at an epsilon of 0.001.
        ValueError: as :func:`epsilon_total` and :class:`client.noise.Release`.
    """
    before = dict(already or {})

    def release(epsilon: float) -> Release:
        return Release(epsilon, batch, rows, dimension, mechanism,
                       delta if mechanism == "gaussian" else 0.0)

    # All numbers of three digits in their order: 0.001, 0.00101, ..., 0.00999, 0.01, ...
    def epsilon_of(place: int) -> float:
        power, digits = divmod(place, 900)
        return float(f"{digits + 100}e{power - 5}")

    def total(place: int) -> float:
        counts = Counter(before)
        counts[release(epsilon_of(place))] += updates
        return epsilon_total(counts, delta)

    most = MOST_GAUSSIAN if mechanism == "gaussian" else _LARGE_EPSILON
    last = bisect.bisect_right(range(6 * 900), most, key=epsilon_of) - 1
    if total(0) > budget:
        left = max(0.0, budget - epsilon_total(before, delta))
        least = epsilon_total({release(epsilon_of(0)): updates}, delta)
        raise Problem(BUDGET_SMALL, what=f"{updates:,} updates, even with an epsilon of "
                      f"{epsilon_of(0):g} each,", first=number(least), left=number(left))
    enough, beyond = 0, 900
    while beyond < last and total(beyond) <= budget:
        enough, beyond = beyond, beyond + 900
    if beyond >= last:
        if total(last) <= budget:
            return epsilon_of(last)
        beyond = last
    return epsilon_of(_largest(total, budget, enough, beyond, epsilon_of))


def delta_total(counts: Mapping[Release, int], epsilon: float) -> float:
    """The delta at which releasing each kind that many times is epsilon-differentially private;
    an upper bound, by the first of both ways alone.

    Raises:
        ValueError: a negative count.
    """
    kinds = _checked(counts, 0.1)
    if not kinds:
        return 0.0
    if not _reaches(kinds):
        return 1.0
    return min(1.0, float(_composed(kinds)[0].get_delta_for_epsilon(epsilon)) + FFT_ERROR)


def best_guess(counts: Mapping[Release, int], delta: float) -> float:
    """How often the best of all attackers is right, at most: from 0.5, a coin, to 1.

    The attacker knows every row but one, and that this one is one of two, by a fair coin; it sees
    all that is released, and says which. Nobody is right more often than (1 + TV) / 2, where TV,
    the total variation, is the delta at epsilon 0; and (epsilon, delta) bounds it by
    (e^epsilon - 1 + 2 delta) / (e^epsilon + 1) (Kairouz, Oh and Viswanath, ICML 2015).

    Raises:
        ValueError: as :func:`epsilon_total`.
    """
    half = math.exp(-min(epsilon_total(counts, delta), 700.0))
    apart = min(delta_total(counts, 0.0), (1 - half + 2 * delta * half) / (1 + half))
    return min(1.0, (1 + apart) / 2)


def certainty(counts: Mapping[Release, int], delta: float) -> float:
    """How sure somebody can become, at most, but with a probability of ``delta``: 0.5 to 1.

    Somebody who holds two neighbouring data sets for equally likely, and sees all that is released,
    believes in the right one with 1 / (1 + exp(-L)), L the privacy loss. This is that belief at a
    loss that is exceeded with a probability of at most ``delta``. It is *not* the belief at
    epsilon: (epsilon, delta) bounds the mean of (1 - exp(epsilon - L)) above epsilon, not how often
    epsilon is exceeded. But as that mean is at least (1 - exp(t - x)) P(L > x) at epsilon = t, a
    loss of ``x = t - ln(1 - s)`` is exceeded with at most ``delta`` where t is the epsilon at
    ``s delta``; the best of some s counts.

    Raises:
        ValueError: as :func:`epsilon_total`.
    """
    most = math.fsum(count * release.amplified if release.mechanism == "laplace" else math.inf
                     for release, count in counts.items() if count)  # no loss is larger
    for part in (0.7, 0.5, 0.3, 0.1, 0.03, 0.01):
        if part * delta >= 2 * FFT_ERROR:
            most = min(most, epsilon_total(counts, part * delta) - math.log1p(-part))
    return 1 / (1 + math.exp(-min(most, 700.0)))


def _checked(counts: Mapping[Release, int], delta: float) -> _Counts:
    """The kinds that occur, in an order that does not depend on how they were counted."""
    if not 0 < delta < 0.5:
        raise ValueError(f"delta {delta} is not between 0 and 0.5")
    if any(count < 0 for count in counts.values()):
        raise ValueError("a negative number of releases")
    return tuple(sorted(((r, count) for r, count in counts.items() if count), key=repr))


@lru_cache(maxsize=1024)
def _tight(kinds: _Counts, delta: float) -> float:
    """:func:`epsilon_total` by the first bound; infinite where it does not reach."""
    if delta < 2 * FFT_ERROR or not _reaches(kinds):
        return math.inf
    most = math.fsum(count * float(dominating(release).losses[-1]) for release, count in kinds)
    whole, interval = _composed(kinds)
    if whole.get_delta_for_epsilon(most) > delta - FFT_ERROR:
        return math.inf
    return _solve(whole, interval, delta - FFT_ERROR, most)


def _reaches(kinds: _Counts) -> bool:
    """Whether losses can be composed: neither too many nor too large, nor beyond all measure."""
    return sum(count for _, count in kinds) <= MAX_RELEASES and all(
        release.epsilon >= _SMALL_EPSILON and (
            release.mechanism == "gaussian" or release.epsilon <= _LARGE_EPSILON)
        and dominating(release).losses[-1] <= _LARGE_EPSILON for release, _ in kinds)


@lru_cache(maxsize=4)
def _composed(kinds: _Counts) -> tuple[Any, float]:
    """The law of the losses of all releases together, and the interval of its lattice."""
    laws = [(dominating(release), count) for release, count in kinds]
    most = math.fsum(count * float(law.losses[-1]) for law, count in laws)
    square = math.fsum(count * law.spread**2 for law, count in laws)
    # Of each kind: as fine as it takes, and no finer than one release's law can be held.
    enough = max(max(law.spread / _FINE, float(law.losses[-1] - law.losses[0]) / _HELD)
                 for law, _ in laws)
    interval = _interval(square, most, enough)
    whole: Any = None
    # The library's Chernoff bounds overflow at some orders, and it passes over those.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        for release, count in kinds:
            part = _part(release, count, interval)
            whole = part if whole is None else whole.compose(part, _TAIL)
    return whole, interval


@lru_cache(maxsize=16)
def _part(release: Release, count: int, interval: float) -> Any:
    """One kind, composed; kept, as what was released before does not change while others do."""
    # Imported here: it brings scipy.stats with it, two thirds of a second, which a command that
    # only reads a ledger's counts, or prints its help, need not wait for.
    from dp_accounting.pld import pld_pmf, privacy_loss_distribution

    first, masses = on_lattice(dominating(release), interval)
    return _power(privacy_loss_distribution.PrivacyLossDistribution(
        pld_pmf.DensePLDPmf(interval, first, masses, SLACK, True)), count)


@lru_cache(maxsize=1024)
def _pure(counts: tuple[tuple[float, int], ...], delta: float) -> float:
    """:func:`pure_total` of (epsilon', count) pairs in ascending order, counts positive."""
    plain = math.fsum(epsilon * count for epsilon, count in counts)
    releases = sum(count for _, count in counts)
    if not counts or delta < 2 * FFT_ERROR:
        return plain
    if releases > MAX_RELEASES or counts[-1][0] > _LARGE_EPSILON:
        return plain
    if len(counts) == 1:
        interval = counts[0][0]  # puts both losses, epsilon' and -epsilon', exactly on it
    else:
        interval = _interval(math.fsum(count * e * e for e, count in counts), plain, 0.0)
    whole: Any = None
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        for epsilon, count in counts:
            part = _pure_part(epsilon, count, interval)
            whole = part if whole is None else whole.compose(part, _TAIL)
        return _solve(whole, interval, delta - FFT_ERROR, plain)


@lru_cache(maxsize=16)
def _pure_part(epsilon: float, count: int, interval: float) -> Any:
    """:func:`_part` of any epsilon-differentially private mechanism."""
    from dp_accounting.pld import common, privacy_loss_distribution

    # Rounding epsilon' up to the lattice costs its relative error once. Rounding the two losses
    # up, which the library would do, costs the absolute error at every release.
    rounded = math.ceil(epsilon / interval) * interval
    return _power(privacy_loss_distribution.from_privacy_parameters(
        common.DifferentialPrivacyParameters(rounded), interval), count)


def _interval(square: float, most: float, enough: float) -> float:
    """Spacing of the lattice of losses.

    Args:
        square: sum of all releases' mean square losses.
        most: the largest loss of all together.
        enough: no finer than this.
    """
    # The sum of the losses stays within 9 standard deviations but for 1e-17 or so. Powers of two
    # make every lattice a part of the next finer one, and more releases never make it finer;
    # hence more releases never make the total smaller.
    reach = min(most, 9 * math.sqrt(square))
    return 2.0 ** math.ceil(math.log2(max(2 * reach / _POINTS, enough)))


def _power(one: Any, times: int) -> Any:
    """The privacy loss distribution ``one``, composed ``times`` times.

    In two strides of about the square root: the library bounds the tails by a Chernoff bound at
    a few fixed orders, which are far too small for a thousand repetitions and more, so that one
    stride would be slow, and its rounding error ten to a hundred times larger.
    """
    if times == 1:
        return one
    stride = math.isqrt(times)
    power = one.self_compose(stride, _TAIL).self_compose(times // stride, _TAIL)
    rest = times % stride
    return power.compose(one.self_compose(rest, _TAIL), _TAIL) if rest else power


def _solve(whole: Any, interval: float, delta: float, most: float) -> float:
    """The smallest epsilon up to ``most`` at which ``whole`` has at most that delta.

    Between two points of the lattice delta is linear in exp(epsilon), so two values there give it
    exactly. (The library's own ``get_epsilon_for_delta`` takes exp(-loss), which is 0 from 745 on;
    there it rounds up to the next loss that occurs, and a release more can then seem to cost
    less.)

    Args:
        whole: a law of losses.
        interval: of its lattice.
        delta: to be reached.
        most: an epsilon at which it is.
    """
    delta_at: Callable[[float], float] = whole.get_delta_for_epsilon
    high_delta = delta_at(0.0)
    if high_delta <= delta:
        return 0.0
    low, high = 0, math.ceil(most / interval)
    low_delta, high_delta = high_delta, 0.0
    while high - low > 1:
        middle = (low + high) // 2
        found = delta_at(middle * interval)
        if found <= delta:
            high, high_delta = middle, found
        else:
            low, low_delta = middle, found
    part = (low_delta - delta) / (low_delta - high_delta)
    return min(most, low * interval + math.log1p(part * math.expm1(interval)))
