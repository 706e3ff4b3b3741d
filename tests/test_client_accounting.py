"""What many releases come to: against closed forms, other libraries, and the real sampler.

Every statistical test draws from a fixed seed, so it always passes or always fails. LEVEL is the
probability with which a right total would have failed it, had the seed been drawn at random.
"""

from __future__ import annotations

import math
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.rdp import rdp_privacy_accountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft, optimize, special, stats

from accord.problems import BUDGET_SMALL, Problem
from client.accounting import (
    FFT_ERROR,
    MAX_RELEASES,
    affordable,
    affordable_epsilon,
    delta_total,
    epsilon_total,
    pure_total,
)
from client.noise import Floats, Release, draw
from client.privacy_loss import Masses, directed, dominating, on_lattice

ROOT = Path(__file__).resolve().parent.parent
LEVEL = 1e-5
WHEAT = Release(1.0, 10, 2100, 25)
RYE = Release(0.5, 20, 2100, 25)


def plain(epsilon: float) -> Release:
    """A release whose epsilon' is the epsilon given."""
    return Release(epsilon, 1, 1, 1)


def gaussian(epsilon: float, batch: int = 1, rows: int = 1, delta: float = 1e-6) -> Release:
    return Release(epsilon, batch, rows, 25, "gaussian", delta)


def normal_delta(epsilon: float, mu: float) -> float:
    """Of noise and a shift of mu standard deviations: Balle and Wang 2018, Theorem 5. Releases
    add up in squares (Dong, Roth and Su, "Gaussian differential privacy", 2022)."""
    high, low = special.log_ndtr(mu / 2 - epsilon / mu), special.log_ndtr(-mu / 2 - epsilon / mu)
    return float(math.exp(high) * -math.expm1(min(0.0, epsilon + low - high)))


def normal_epsilon(delta: float, mu: float) -> float:
    """The same, solved for epsilon."""
    if normal_delta(0.0, mu) <= delta:
        return 0.0
    most = mu * mu / 2 + 40 * mu
    return float(optimize.brentq(lambda e: normal_delta(e, mu) - delta, 0.0, most, xtol=1e-13))


def folded(law: Masses, times: int, delta: float) -> float:
    """The epsilon of so many losses of one law: one Fourier transform of our own, on a circle
    that is 28 standard deviations around."""
    size = 1 << 18
    mean, reach = float(law.masses @ law.losses), 14 * law.spread * math.sqrt(times)
    interval = 2 * (abs(mean) * times + reach + float(law.losses[-1])) / size
    first, masses = on_lattice(law, interval)
    circle = np.zeros(size)
    np.add.at(circle, (first + np.arange(len(masses))) % size, masses)
    total = np.roll(fft.irfft(fft.rfft(circle) ** times, size), size // 2)
    losses = (np.arange(size) - size // 2) * interval

    def excess(epsilon: float) -> float:
        over = losses > epsilon
        return float(total[over] @ -np.expm1(epsilon - losses[over])) - delta

    return float(optimize.brentq(excess, 0.0, losses[-1], xtol=1e-12))


@lru_cache
def answers(epsilon: float, times: int) -> tuple[Floats, Floats]:
    """Losses of that many answers of randomised response, and their probabilities."""
    i = np.arange(times + 1)
    return (2.0 * i - times) * epsilon, stats.binom.pmf(i, times, 1 / (1 + math.exp(-epsilon)))


def optimal_delta(epsilon: float, times: int, total: float) -> float:
    """Kairouz, Oh and Viswanath 2015, Theorem 3.3, for any total: the exact smallest delta.

    Of ``times`` answers of randomised response ``i`` are the likelier; the losses add up to
    ``(2 i - times) epsilon``.
    """
    loss, mass = answers(epsilon, times)
    over = loss > total
    return float(np.sum(mass[over] * -np.expm1(total - loss[over])))


def optimal_epsilon(epsilon: float, times: int, delta: float) -> float:
    """The same, solved for the total by bisection."""
    low, high = 0.0, times * epsilon
    if optimal_delta(epsilon, times, low) <= delta:
        return low
    for _ in range(48):
        middle = (low + high) / 2
        if optimal_delta(epsilon, times, middle) <= delta:
            high = middle
        else:
            low = middle
    return high


# -- one Laplace number and any Gaussian one: what others know ---------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("epsilon", "times"), [(0.1, 1), (1.0, 1), (5.0, 1), (0.1, 10), (1.0, 10),
                                                (0.1, 300), (1.0, 100), (5.0, 100)])
def test_one_number_composes_as_the_librarys_own_laplace(epsilon, times):
    """Within 1e-4, and never below what that calls an optimistic estimate.

    Compared by delta where the library's epsilon is not to be relied on (losses above 745).
    """
    release = Release(epsilon, 7, 7, 1)
    low, high = (
        privacy_loss_distribution.from_laplace_mechanism(
            2 / epsilon, 2.0, pessimistic_estimate=pessimistic, use_connect_dots=pessimistic,
            value_discretization_interval=epsilon / 5000)
        for pessimistic in (False, True))
    if times > 1:
        low, high = low.self_compose(times), high.self_compose(times)
    for delta in (1e-3, 1e-6, 1e-9):
        total = epsilon_total({release: times}, delta)
        assert low.get_delta_for_epsilon(total) <= delta
        assert high.get_delta_for_epsilon(total * (1 - 1e-4)) >= delta - FFT_ERROR


@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize(("epsilon", "times"), [(0.01, 1), (1.0, 1), (10.0, 1), (0.5, 30),
                                                (0.01, 10_000), (1.0, 10_000), (0.05, 100_000)])
def test_gaussian_noise_composes_to_the_closed_form(epsilon, times, delta):
    """Never below it, and above by less than 1e-4 (1e-3 for a hundred thousand) but for what is
    taken off delta, which for the smallest of these makes 4e-4 of a total."""
    release = gaussian(epsilon)
    mu = 2 / release.sigma * math.sqrt(times)
    total = epsilon_total({release: times}, delta)
    assert normal_epsilon(delta, mu) * (1 - 1e-12) <= total
    margin = 1e-4 if times <= 10_000 else 1e-3
    assert total <= normal_epsilon(delta - FFT_ERROR, mu) * (1 + margin) + 1e-12
    assert total <= normal_epsilon(delta, mu) * (1 + 1e-3)


@given(st.floats(-3, 2), st.floats(-12, math.log10(0.49)))
@settings(deadline=None, max_examples=60)
def test_sigma_is_the_least_that_will_do(log_epsilon, log_delta):
    epsilon, delta = 10**log_epsilon, 10**log_delta
    sigma = gaussian(epsilon, delta=delta).sigma
    # Doubles leave 1e-9 or so of the condition, and sigma is rounded up by as much.
    assert normal_delta(epsilon, 2 / sigma) <= delta * (1 + 1e-9)
    assert normal_delta(epsilon, 2 / (sigma * (1 - 1e-6))) > delta
    if delta > 1e-12 and epsilon > 0.01:
        theirs = dp_accounting.get_sigma_gaussian(epsilon, delta)
        assert sigma == pytest.approx(2 * theirs, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("epsilon", "rows", "batch", "times"), [
    (1.0, 2100, 10, 1000), (1.0, 2100, 50, 200), (2.0, 300, 20, 100), (5.0, 80, 10, 20)])
def test_sampled_gaussian_noise_is_within_what_moments_allow(epsilon, rows, batch, times):
    """The library's accountant by Renyi divergences knows this sampling and this neighbourhood."""
    release = gaussian(epsilon, batch, rows)
    accountant = rdp_privacy_accountant.RdpAccountant(
        neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE)
    accountant.compose(dp_accounting.SampledWithoutReplacementDpEvent(
        rows, batch, dp_accounting.GaussianDpEvent(release.sigma / 2)), times)
    total = epsilon_total({release: times}, 1e-6)
    assert total <= accountant.get_epsilon(1e-6)
    assert total >= folded(directed(release), times, 1e-6) * (1 - 1e-3)
    assert total >= folded(directed(release, reverse=True), times, 1e-6) * (1 - 1e-3)


@pytest.mark.parametrize("times", [100, 3000])
@pytest.mark.parametrize("epsilon", [0.3, 3.0])
def test_in_many_dimensions_it_is_like_gaussian_noise_as_large(epsilon, times):
    """Its numbers have the variance (d + 1) (2C / epsilon)^2."""
    d = 1000
    exact = normal_epsilon(1e-6, epsilon / math.sqrt(d + 1) * math.sqrt(times))
    total = epsilon_total({Release(epsilon, 9, 9, d): times}, 1e-6)
    assert total == pytest.approx(exact, rel=0.01)


# -- the real thing ---------------------------------------------------------------------------


def observed(release: Release, times: int, count: int, *, reverse: bool) -> Floats:
    """Losses of so many releases together by the real sampler, as often as ``count``.

    Row 0 is odd, and so is its gradient, which is the opposite of all the others'. What is seen
    is less what the others add up to, as they are known.
    """
    rng = np.random.default_rng([release.dimension, times, reverse])
    # a batch of rows, uniformly without replacement: the first of a random order
    order = rng.random((count, times, release.rows)).argsort(axis=2)[:, :, :release.batch]
    there = (order == 0).any(axis=2) & (not reverse)
    shift = np.zeros(release.dimension)
    shift[-1] = 2.0
    seen = np.array([draw(release, 1.0, rng) for _ in range(count * times)])
    seen = seen.reshape(count, times, -1) + there[:, :, None] * shift
    if release.mechanism == "gaussian":
        gain = ((seen**2).sum(axis=2) - ((seen - shift)**2).sum(axis=2)) / (2 * release.sigma**2)
    else:
        gain = release.epsilon / 2 * (
            np.linalg.norm(seen, axis=2) - np.linalg.norm(seen - shift, axis=2))
    share = release.batch / release.rows
    total = np.log(1 - share + share * np.exp(gain)).sum(axis=1)
    return np.asarray(-total if reverse else total)


def shown(losses: Floats, epsilon: float) -> tuple[float, float]:
    """An estimate of delta at that epsilon, and its standard error."""
    lost = -np.expm1(np.minimum(0.0, epsilon - losses))
    return float(lost.mean()), float(lost.std() / math.sqrt(len(lost)))


FIVE = 4.26  # standard errors that are exceeded with a probability of 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("release", [
    Release(1.0, 3, 3, 3), Release(3.0, 2, 5, 3), Release(4.0, 2, 9, 24), Release(2.0, 1, 2, 1),
    Release(8.0, 2, 5, 4, "gaussian", 1e-3)], ids=str)
@pytest.mark.parametrize("delta", [0.03, 0.003])
def test_never_less_than_what_an_observer_sees(release, delta):
    times = 5
    total = epsilon_total({release: times}, delta)
    exact = [folded(directed(release, reverse=reverse), times, delta) for reverse in (False, True)]
    for reverse in (False, True):
        losses = drawn(release, times, reverse)
        estimate, error = shown(losses, total)
        assert estimate <= delta + FIVE * error
        # and one direction alone is what is seen, no less
        estimate, error = shown(losses, exact[reverse])
        assert abs(estimate - delta) <= FIVE * error
    assert total >= max(exact) * (1 - 1e-3)
    if release.batch == release.rows:
        assert total == pytest.approx(max(exact), rel=1e-3)


@lru_cache
def drawn(release: Release, times: int, reverse: bool) -> Floats:
    return observed(release, times, 10_000, reverse=reverse)


def test_the_observer_is_not_blind():
    """It would have noticed noise that is a fifth too small, or a share that is."""
    release = Release(3.0, 2, 5, 3)
    losses = drawn(release, 5, False)
    for liar in (Release(2.4, 2, 5, 3), Release(3.0, 8, 25, 3), Release(3.0, 2, 5, 5)):
        estimate, error = shown(losses, folded(directed(liar), 5, 0.03))
        assert estimate > 0.03 + FIVE * error


# -- figures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "epsilon", "rows", "batch", "times", "total", "one_way", "pure"), [
    (24, 0.5, 2100, 10, 4000, 0.117, 0.113, 0.81),
    (24, 1.0, 2100, 10, 4000, 0.258, 0.240, 2.33),
    (24, 1.0, 2100, 50, 1500, 0.852, 0.797, 8.12),
    (24, 5.0, 2100, 10, 4000, 2.298, 1.82, 705),
    (31, 5.0, 80, 10, 300, 16.35, 14.17, 884),
])
def test_the_figures_of_the_plan(d, epsilon, rows, batch, times, total, one_way, pure):
    release = Release(epsilon, batch, rows, d)
    found = epsilon_total({release: times}, 1e-6)
    assert found == pytest.approx(total, rel=5e-3)
    # the library's transforms and our own
    assert found == pytest.approx(folded(dominating(release), times, 1e-6), rel=1e-4)
    assert folded(directed(release), times, 1e-6) == pytest.approx(one_way, rel=5e-3)
    assert folded(directed(release, reverse=True), times, 1e-6) <= one_way
    assert pure_total({release: times}, 1e-6) == pytest.approx(pure, rel=5e-3)


def test_nothing_comes_to_nothing():
    for total in (epsilon_total, pure_total):
        assert total({}, 1e-6) == total({WHEAT: 0}, 1e-6) == 0
    assert delta_total({}, 1.0) == delta_total({WHEAT: 0}, 1.0) == 0


# -- as any private mechanism -----------------------------------------------------------------


@pytest.mark.parametrize("delta", [1e-5, 1e-6, 1e-9])
@pytest.mark.parametrize(
    ("epsilon", "times"),
    [(1e-4, 10_000), (1e-3, 300_000), (0.0081, 4000), (0.1, 300), (0.3, 7), (0.5, 1), (1, 100),
     (2.96, 300), (1, 5000), (10, 1000), (10, 1)],
)
def test_one_kind_composes_optimally_and_never_too_low(epsilon, times, delta):
    total = pure_total({plain(epsilon): times}, delta)
    best = optimal_epsilon(epsilon, times, delta)
    assert best * (1 - 1e-12) <= total <= best * (1 + 1e-3)
    assert total <= times * epsilon


@given(st.floats(-5, 1), st.integers(1, 20_000), st.floats(-10.5, -2))
@settings(deadline=None, max_examples=40)
def test_one_kind_is_an_upper_bound_anywhere(log_epsilon, times, log_delta):
    epsilon, delta = 10**log_epsilon, 10**log_delta
    total = pure_total({plain(epsilon): times}, delta)
    if total < times * epsilon * (1 - 1e-12):
        assert optimal_delta(epsilon, times, total) <= delta


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.floats(-4, 0.7), st.integers(1, 400)), min_size=2, max_size=2),
    st.floats(-10, -2),
)
@settings(deadline=None, max_examples=20)
def test_two_kinds_are_an_upper_bound_and_not_far_off(kinds, log_delta):
    delta = 10**log_delta
    counts = {plain(10**e): times for e, times in kinds}
    total = pure_total(counts, delta)
    assert total <= math.fsum(r.epsilon * t for r, t in counts.items())
    assert total >= max(pure_total({r: t}, delta) for r, t in counts.items()) * (1 - 1e-4)
    if len(counts) == 2:  # exactly, by the sum over both binomials
        (e, s), (f, t) = ((r.epsilon, times) for r, times in counts.items())
        loss = np.add.outer(answers(e, s)[0], answers(f, t)[0])
        mass = np.outer(answers(e, s)[1], answers(f, t)[1])
        over = loss > total
        exact = float(np.sum(mass[over] * -np.expm1(total - loss[over])))
        assert exact <= delta * (1 + 1e-9)


@pytest.mark.slow
def test_the_transforms_are_wrong_by_less_than_is_taken_off_delta():
    for epsilon, times in ((1e-3, 10**6), (1e-4, 10**6), (0.5, 100), (1.0, 10_000)):
        for delta in (1e-10, 1e-9, 1e-6):
            total = pure_total({plain(epsilon): times}, delta)
            assert optimal_delta(epsilon, times, total) <= delta - FFT_ERROR / 2


def test_kinds_of_one_epsilon_compose_as_one():
    same = Release(1.0, 10, 2100, 99)  # another dimension, the same epsilon'
    assert pure_total({WHEAT: 30, same: 70}, 1e-6) == pure_total({WHEAT: 100}, 1e-6)


def test_gaussian_noise_is_private_with_a_delta_only():
    assert pure_total({gaussian(1.0): 1}, 1e-6) == math.inf
    assert pure_total({WHEAT: 5, gaussian(1.0): 0}, 1e-6) < math.inf


# -- the smaller of both ----------------------------------------------------------------------

kinds = st.builds(
    lambda log_epsilon, d, rows, part: Release(10**log_epsilon, max(1, int(part * rows)), rows, d),
    st.floats(-4, 1), st.integers(1, 200), st.integers(1, 10_000), st.floats(0, 1),
) | st.builds(
    lambda log_epsilon, rows, part: gaussian(10**log_epsilon, max(1, int(part * rows)), rows),
    st.floats(-3, 0.3), st.integers(1, 10_000), st.floats(0.1, 1),
)


@pytest.mark.slow
@given(st.lists(st.tuples(kinds, st.integers(1, 2000)), min_size=1, max_size=2),
       st.integers(1, 2000), kinds)
@settings(deadline=None, max_examples=10)
def test_more_releases_never_cost_less(kinds, more, other):
    counts = dict(kinds)
    before = epsilon_total(counts, 1e-6)
    for release in [*counts, other]:
        after = epsilon_total({**counts, release: counts.get(release, 0) + more}, 1e-6)
        assert after >= before * (1 - 1e-9)


@pytest.mark.slow
@given(st.lists(st.tuples(kinds, st.integers(1, 2000)), min_size=2, max_size=3, unique_by=str),
       st.floats(-9, -2))
@settings(deadline=None, max_examples=7)
def test_a_total_is_no_more_than_any_other_sum_in_any_order(kinds, log_delta):
    delta, counts = 10**log_delta, dict(kinds)
    total = epsilon_total(counts, delta)
    assert total == epsilon_total(dict(reversed(kinds)), delta)
    assert total <= pure_total(counts, delta)
    assert total <= math.fsum(
        times * (r.amplified if r.mechanism == "laplace" else math.inf)
        for r, times in counts.items())
    # Each part by itself, with its share of delta: basic composition, but for the lattices.
    parts = [epsilon_total({r: times}, delta / len(counts)) for r, times in counts.items()]
    assert max(epsilon_total({r: t}, delta) for r, t in counts.items()) * (1 - 1e-3) <= total
    assert total <= math.fsum(parts) * (1 + 1e-3)


def test_totals_and_deltas_agree():
    for counts in ({WHEAT: 4000}, {WHEAT: 300, RYE: 700}, {gaussian(0.5, 10, 100): 50, RYE: 80},
                   {Release(2.0, 5, 5, 9): 20}):
        for delta in (1e-9, 1e-6, 1e-3):
            total = epsilon_total(counts, delta)
            assert delta_total(counts, total) == pytest.approx(delta, rel=1e-6)
            assert delta_total(counts, total * 1.001) < delta < delta_total(counts, total * 0.999)
        if all(release.mechanism == "laplace" for release in counts):
            assert delta_total(counts, pure_total(counts, 1e-6)) <= 1e-6


def test_where_the_transforms_do_not_reach_the_plain_sum_counts():
    assert epsilon_total({plain(0.1): 300}, 1e-12) == 30.0
    assert epsilon_total({plain(1e-6): MAX_RELEASES + 1}, 1e-6) == pytest.approx(10.0, rel=1e-6)
    assert epsilon_total({plain(900.0): 2, plain(0.5): 1}, 1e-6) == 1800.5
    assert epsilon_total({gaussian(0.1): 300}, 1e-12) == math.inf


@pytest.mark.parametrize(("epsilon", "d"), [(1e-12, 1), (1e-18, 1), (1e-140, 24), (1e-160, 24)])
def test_noise_beyond_all_measure_costs_nothing(epsilon, d):
    assert 0 <= epsilon_total({Release(epsilon, 1, 1000, d): 10}, 1e-6) <= 10 * epsilon


def test_a_total_that_makes_no_sense_is_refused():
    for total in (epsilon_total, pure_total):
        for delta in (0.0, 0.5, -1.0, math.nan):
            with pytest.raises(ValueError, match="delta"):
                total({WHEAT: 1}, delta)
        with pytest.raises(ValueError, match="negative"):
            total({WHEAT: -1}, 1e-6)
    with pytest.raises(ValueError, match="negative"):
        delta_total({WHEAT: -1}, 1.0)


# -- what a budget is enough for --------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("release", "budget", "already"),
    [(WHEAT, 0.3, {}), (Release(1.0, 5, 5, 25), 2.0, {RYE: 500}), (plain(0.7), 5.0, {}),
     (plain(1e-3), 8.0, {}), (Release(5.0, 10, 80, 25), 9.0, {}), (RYE, 0.2, {RYE: 77}),
     (gaussian(1.0), 8.0, {}), (gaussian(0.3, 1, 10), 0.5, {RYE: 20}),
     (RYE, 1.0, {gaussian(0.5): 1})],
    ids=str,
)
def test_what_is_affordable_is_exact(release, budget, already):
    count = affordable(release, budget, 1e-6, already)

    def total(more: int) -> float:
        return epsilon_total({**already, release: already.get(release, 0) + more}, 1e-6)

    assert total(count) <= budget < total(count + 1)


def test_affordable_at_its_limits():
    with pytest.raises(Problem) as refused:
        affordable(plain(2.0), 1.5, 1e-6, {plain(0.5): 1})
    assert refused.value.kind is BUDGET_SMALL
    assert refused.value.details["first"] == "2"  # one update alone
    assert refused.value.details["left"] == "1"
    assert "One update alone would cost epsilon 2 and 1 of the budget is left" in str(refused.value)
    assert affordable(plain(1e-9), 100.0, 1e-6, {plain(1e-9): 5}) == MAX_RELEASES - 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "updates", "batch", "rows", "mechanism", "already"),
    [(3.0, 100, 10, 10, "laplace", {}), (2.0, 30, 10, 100, "laplace", {RYE: 300}),
     (0.01, 1, 1, 1, "laplace", {}), (3.0, 100, 10, 10, "gaussian", {}),
     (1.0, 20, 10, 20, "gaussian", {WHEAT: 100}), (450.0, 1, 1, 1, "laplace", {})],
)
def test_the_affordable_epsilon_is_the_last_of_three_digits(
    budget, updates, batch, rows, mechanism, already
):
    found = affordable_epsilon(budget, 1e-6, updates, batch, rows, 5, mechanism, already)
    assert float(f"{found:.3g}") == found

    def total(epsilon: float) -> float:
        release = Release(epsilon, batch, rows, 5, mechanism,
                          1e-6 if mechanism == "gaussian" else 0.0)
        return epsilon_total({**already, release: already.get(release, 0) + updates}, 1e-6)

    unit = 10.0 ** (math.floor(math.log10(found)) - 2)
    assert total(found) <= budget < total(found + unit)


def test_an_affordable_epsilon_counts_what_was_released_at_that_same_one():
    found = affordable_epsilon(2.0, 1e-6, 10, 1, 1, 5)
    again = affordable_epsilon(2.0, 1e-6, 6, 1, 1, 5, already={Release(found, 1, 1, 5): 4})
    assert again == found


@pytest.mark.parametrize("mechanism", ["laplace", "gaussian"])
def test_a_budget_that_no_epsilon_fits(mechanism):
    with pytest.raises(Problem) as refused:
        affordable_epsilon(0.5, 1e-6, 1_000_000, 1, 1, 3, mechanism)
    assert refused.value.kind is BUDGET_SMALL
    assert "1,000,000 updates, even with an epsilon of 0.001 each" in str(refused.value)
    assert refused.value.details["left"] == "0.5"


def test_the_accounting_library_is_loaded_only_when_it_is_needed():
    code = (
        "import client.budget, client.accounting, sys; from client.noise import Release\n"
        "from client.privacy_loss import dominating; dominating(Release(1.0, 1, 2, 3))\n"
        "print({'dp_accounting', 'scipy'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          check=True, timeout=60)
    assert done.stdout.strip() == "set()"
