"""The law of one release's privacy loss, against the sampler and against other ways to reckon it.

Every statistical test draws from a fixed seed, so it always passes or always fails. LEVEL is the
probability with which a right law would have failed it, had the seed been drawn at random.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats

from client.noise import Floats, Release, draw, isotropic_laplace
from client.privacy_loss import (
    PANELS,
    Masses,
    _density,
    bessel_ratio,
    directed,
    dominating,
    on_lattice,
    sampled,
    split,
)

LEVEL = 1e-5
CLIP = 0.7  # cancels; anything but 1 shows where it does not


def laplace(epsilon: float, d: int, batch: int = 1, rows: int = 1) -> Release:
    return Release(epsilon, batch, rows, d)


def gaussian(epsilon: float, batch: int = 1, rows: int = 1, delta: float = 1e-6) -> Release:
    return Release(epsilon, batch, rows, 3, "gaussian", delta)


def curve(law: Masses, at: Floats) -> Floats:
    """Its hockey-stick divergence, sum of masses (1 - exp(at - loss))+, at each of ``at``."""
    after = np.searchsorted(law.losses, at, side="right")
    mass = np.append(np.cumsum(law.masses[::-1])[::-1], 0.0)
    other = np.append(np.cumsum((law.masses * np.exp(-law.losses))[::-1])[::-1], 0.0)
    return np.asarray(mass[after] - np.exp(at) * other[after])


def assert_nowhere_below(greater: Masses, less: Masses) -> None:
    """Between two neighbouring losses of either law a curve is a straight line in exp(epsilon), so
    the losses of both are enough for every epsilon, also those below 0."""
    at = np.union1d(greater.losses, less.losses)
    at = np.concatenate([[at[0] - 1.0], at])
    mass = np.append(np.cumsum(greater.masses[::-1])[::-1], 0.0)
    rounding = 1e-14 + 1e-12 * mass[np.searchsorted(greater.losses, at, side="right")]
    assert (curve(greater, at) >= curve(less, at) - rounding).all()


def observed(release: Release, count: int, seed: int = 1) -> Floats:
    """Losses, before sampling, of what the real sampler gives to shifted data; shape (count,)."""
    rng = np.random.default_rng([seed, release.dimension])
    shift = np.zeros(release.dimension)
    shift[0] = 2 * CLIP
    seen = np.array([draw(release, CLIP, rng) for _ in range(count)]) + shift
    if release.mechanism == "gaussian":
        variance = (release.sigma * CLIP) ** 2
        return np.asarray((seen**2 - (seen - shift) ** 2).sum(axis=1) / (2 * variance))
    lengths = np.linalg.norm(seen, axis=1) - np.linalg.norm(seen - shift, axis=1)
    return np.asarray(release.epsilon / (2 * CLIP) * lengths)


def misfit(law: Masses, losses: Floats) -> float:
    """p-value of the Kolmogorov-Smirnov distance between a law and a sample, or more.

    The masses of a piece are on its two ends. So what the true law has up to an end is between
    what the masses are up to this one and up to the one before.
    """
    # Rounding must not part what sits on the smallest and the largest loss from them.
    for end in (law.losses[0], law.losses[-1]):
        losses = np.where(np.abs(losses - end) < 1e-12 * abs(end), end, losses)
    losses = np.sort(losses)
    seen = np.searchsorted(losses, law.losses, side="right") / len(losses)
    most = np.cumsum(law.masses)
    least = np.append(0.0, most[:-1])
    distance = max(float((seen - most).max()), float((least - seen).max()))
    return float(stats.kstwo.sf(distance, len(losses)))


# -- against the sampler ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 5.0, 20.0])
@pytest.mark.parametrize("d", [1, 2, 3, 24, 1000])
def test_the_law_is_what_the_sampler_does(d, epsilon):
    release = laplace(epsilon, d)
    assert misfit(directed(release), observed(release, 2_000 if d == 1000 else 8_000)) > LEVEL


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 20.0])
def test_the_law_of_gaussian_noise_is_what_the_sampler_does(epsilon):
    release = gaussian(epsilon)
    assert misfit(directed(release), observed(release, 8_000)) > LEVEL


@pytest.mark.parametrize("d", [1, 2, 24])
def test_a_drawn_batch_has_the_law_of_what_it_does(d):
    """The batch really drawn: 3 of 8 rows, one of which is odd."""
    release, count = laplace(3.0, d, 3, 8), 8_000
    rng = np.random.default_rng(d)
    there = np.array([0 in rng.choice(8, 3, replace=False) for _ in range(count)])
    losses = observed(release, count)
    # Where the row is not in the batch, what is seen is a mirror image of where it is.
    forward = np.where(there, losses, -losses)
    assert misfit(directed(release), np.log(5 / 8 + 3 / 8 * np.exp(forward))) > LEVEL
    backward = -np.log(5 / 8 + 3 / 8 * np.exp(-losses))
    assert misfit(directed(release, reverse=True), backward) > LEVEL


def test_the_sample_would_tell_a_liar():
    """Half the noise, a dimension more, a share too small: each is far from what is observed."""
    losses = observed(laplace(1.0, 24), 8_000)
    assert misfit(directed(laplace(2.0, 24)), losses) < 1e-30
    assert misfit(directed(laplace(1.0, 18)), losses) < LEVEL
    losses = observed(laplace(3.0, 2), 8_000)
    assert misfit(directed(laplace(3.0, 2, 9, 10)), losses) < 1e-30


@pytest.mark.parametrize("d", [1, 2, 24])
def test_the_noise_is_normal_with_a_variance_that_is_gamma(d):
    """Its characteristic function is (1 + |t|^2 / a^2)^(-(d+1)/2) with a = epsilon / 2C; so it is
    that of sqrt(G) N with G Gamma((d+1)/2, 2 / a^2), and it is self-decomposable."""
    epsilon, count = 0.8, 10_000
    a = epsilon / (2 * CLIP)
    rng = np.random.default_rng(d)
    noise = np.array([isotropic_laplace(d, epsilon, CLIP, rng) for _ in range(count)])
    for t in (0.3, 1.0, 3.0):
        expected = (1 + t**2) ** (-(d + 1) / 2)
        waves = np.cos(t * a * noise[:, 0])
        # its variance, by cos^2 x = (1 + cos 2x) / 2; 5 standard deviations are under 1e-6
        deviation = math.sqrt(((1 + (1 + 4 * t**2) ** (-(d + 1) / 2)) / 2 - expected**2) / count)
        assert abs(waves.mean() - expected) < 5 * deviation
    variance = rng.gamma((d + 1) / 2, 2 / a**2, count)
    other = np.sqrt(variance)[:, None] * rng.standard_normal((count, d))
    assert stats.ks_2samp(noise[:, 0], other[:, 0]).pvalue > LEVEL
    radius = np.linalg.norm(other, axis=1)
    assert stats.kstest(radius, stats.gamma(d, scale=1 / a).cdf).pvalue > LEVEL


# -- against other coordinates ----------------------------------------------------------------


def below(loss: float, epsilon: float, d: int) -> float:
    """Probability under P of a loss of at most that, in polar coordinates.

    In units of 1/a the radius r of the noise is Gamma(d, 1), the shift epsilon long, and the
    cosine t of the angle between them such that (1 + t) / 2 is Beta((d-1)/2, (d-1)/2). The loss
    is at most l where t >= (epsilon^2 - l^2 - 2 l r) / (2 r epsilon), if l + r is not negative.
    """
    def density(root: float) -> float:
        # r = first + root^2 takes away the square root that two dimensions have at the first r
        r = first + root**2
        if r == 0.0:
            return 0.0
        t = (epsilon**2 - loss**2 - 2 * loss * r) / (2 * r * epsilon)
        half = (d - 1) / 2
        part = special.betainc(half, half, min(1.0, max(0.0, (1 - t) / 2)))
        return float(2 * root * math.exp((d - 1) * math.log(r) - r - math.lgamma(d)) * part)

    first = (epsilon - loss) / 2  # where t is 1: no less will do
    last = max(stats.gamma(d).isf(1e-18), first + 45)
    middle = math.sqrt(max(d - 1 - first, 0.0))
    found = 0.0
    # With a short shift, or close to the end, the angle turns within a small part of the radius.
    for low, high in ((0.0, middle), (middle, math.sqrt(last - first))):
        if high > low:
            found += integrate.quad(density, low, high, epsabs=1e-15, epsrel=1e-12, limit=200)[0]
    return found


def unsampled(loss: float, epsilon: float, d: int) -> float:
    """The hockey-stick divergence of shifted noise: P(L > l) - e^l Q(L > l)."""
    if loss >= epsilon:
        return 0.0
    if loss <= -epsilon:
        return -math.expm1(loss)
    # Q is P's mirror image. A loss above l under P is one below -l under Q.
    return 1 - below(loss, epsilon, d) - math.exp(loss) * below(-loss, epsilon, d)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 5.0, 20.0])
@pytest.mark.parametrize("d", [2, 3, 24])
def test_the_curve_is_that_of_an_integral_in_polar_coordinates(d, epsilon):
    """At the ends of its pieces the curve is exact."""
    law = directed(laplace(epsilon, d))
    for part in (0.3, 0.5, 0.6, 0.8):
        at = law.losses[int(part * 2 * PANELS)]
        exact = unsampled(float(at), epsilon, d)
        assert curve(law, np.array([at]))[0] == pytest.approx(exact, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize(("epsilon", "d"), [(0.5, 2), (5.0, 3), (5.0, 24)])
@pytest.mark.parametrize("share", [0.01, 0.4])
def test_the_curve_of_a_sampled_row_is_that_integral_amplified(epsilon, d, share):
    """At epsilon', forwards, it is g delta(l) with 1 + g (e^l - 1) = e^epsilon' (Balle, Barthe and
    Gaboardi 2018); backwards the row's chance is on the other side."""
    release = laplace(epsilon, d, int(share * 1000), 1000)
    law, back = directed(release), directed(release, reverse=True)
    for part in (0.55, 0.7):
        at = float(law.losses[int(part * 2 * PANELS)])
        inner = math.log1p(math.expm1(at) / share)
        exact = share * unsampled(inner, epsilon, d)
        assert curve(law, np.array([at]))[0] == pytest.approx(exact, rel=1e-7, abs=1e-12)
        assert curve(dominating(release), np.array([at]))[0] == pytest.approx(exact, rel=1e-7)
        at = float(back.losses[int(part * 2 * PANELS)])
        inner = math.log1p(math.expm1(-at) / share)  # the loss before sampling is below this
        p, q = below(inner, epsilon, d), 1 - below(-inner, epsilon, d)
        exact = q - math.exp(at) * ((1 - share) * q + share * p)
        assert curve(back, np.array([at]))[0] == pytest.approx(exact, rel=1e-7, abs=1e-12)


def test_one_dimension_is_the_laplace_distribution():
    """Its curve is 1 - exp((l - epsilon) / 2) up to epsilon: Awan and Ramasethu, for one."""
    for epsilon in (1e-3, 0.3, 4.0, 30.0):
        law = directed(laplace(epsilon, 1))
        inside = law.losses[1:-1]
        np.testing.assert_allclose(
            curve(law, inside), -np.expm1((inside - epsilon) / 2), rtol=1e-10, atol=1e-14)
        assert law.masses[-1] == pytest.approx(0.5, abs=1e-3 * epsilon)


def phi_curve(at: Floats, mu: float) -> Floats:
    """Of Gaussian noise and a shift of mu deviations: Balle and Wang 2018, Theorem 5."""
    return np.asarray(special.ndtr(mu / 2 - at / mu)
                      - np.exp(at + special.log_ndtr(-mu / 2 - at / mu)))


@pytest.mark.parametrize("share", [1.0, 0.4, 0.01])
@pytest.mark.parametrize("epsilon", [0.01, 1.0, 20.0])
def test_the_curve_of_gaussian_noise_is_the_closed_form(epsilon, share):
    release = gaussian(epsilon, int(share * 1000), 1000)
    law, mu = directed(release), 2 / release.sigma
    at = law.losses[PANELS + 50::200]
    at = at[at > 0]
    exact = share * phi_curve(np.log1p(np.expm1(at) / share), mu)
    np.testing.assert_allclose(curve(law, at), exact, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("epsilon", [0.1, 5.0, 60.0])
@pytest.mark.parametrize("d", [2, 3, 24, 101])
def test_the_density_comes_to_what_bessel_functions_say(d, epsilon):
    """Poisson's integral (NIST DLMF 10.32.2) for both of its summands."""
    x, order = epsilon / 2, (d - 2) / 2
    edge, log_p, scale = _density(laplace(epsilon, d))
    assert edge == math.pi / 2
    assert scale(np.array([math.pi / 2]))[0] == epsilon
    nodes, weights = np.polynomial.legendre.leggauss(400)
    log_found = special.logsumexp(log_p(edge * nodes), b=edge * weights)
    kappa = (d - 1) / x * special.kve(d / 2, x) / special.kve(d / 2 - 1, x)
    parts = [  # logarithms, as the rest would underflow
        0.5 * math.log(math.pi) + math.lgamma((d - 1) / 2) + math.log(kappa)
        + order * math.log(2 / x) + math.log(special.ive(order, x)) + x,
        0.5 * math.log(math.pi) + math.lgamma((d + 1) / 2)
        + (order + 1) * math.log(2 / x) + math.log(special.ive(order + 1, x)) + x,
    ]
    assert log_found == pytest.approx(special.logsumexp(parts), abs=1e-10)


@given(st.integers(1, 2000), st.floats(-5, 3))
@settings(deadline=None)
def test_the_ratio_of_bessel_functions(d, log_x):
    x = 10**log_x
    above, under = special.kve(d / 2, x), special.kve(abs(d / 2 - 1), x)
    ratio = bessel_ratio(d, x)
    assert ratio > 0 and math.isfinite(ratio)
    if math.isfinite(above):
        assert ratio == pytest.approx(above / under, rel=1e-11)
    # Between the bounds of Segura, "Bounds for ratios of modified Bessel functions", 2011.
    v = d / 2
    assert ratio <= (v - 0.5 + math.hypot(v - 0.5, x)) / x * (1 + 1e-12)
    if d > 1:
        assert ratio >= (v - 1 + math.hypot(v - 1, x)) / x * (1 - 1e-12)


# -- what makes them bounds -------------------------------------------------------------------

kinds = st.builds(
    lambda log_epsilon, d, rows, part: laplace(10**log_epsilon, d, max(1, int(part * rows)), rows),
    st.floats(-4, math.log10(50)), st.integers(1, 200), st.integers(1, 10_000), st.floats(0, 1),
) | st.builds(
    lambda log_epsilon, rows, part: gaussian(10**log_epsilon, max(1, int(part * rows)), rows),
    st.floats(-4, math.log10(20)), st.integers(1, 10_000), st.floats(0, 1),
)


@pytest.mark.slow
@given(kinds)
@example(laplace(50.0, 1, 1, 10_000))
@example(laplace(50.0, 200, 10_000, 10_000))
@example(laplace(1e-4, 2, 1, 10_000))
@settings(deadline=None, max_examples=40)
def test_a_law_adds_up_and_dominates_both_directions(release):
    law, forward, backward = (
        dominating(release), directed(release), directed(release, reverse=True))
    for some in (law, forward, backward):
        assert (some.masses >= 0).all() and (np.diff(some.losses) >= 0).all()
        assert math.fsum(some.masses) == pytest.approx(1, abs=1e-12)
        assert math.fsum(some.masses * np.exp(-some.losses)) <= 1 + 1e-12
    for some in (forward, backward):
        # tails that are not reckoned are exp(-80) of the greatest density
        assert math.fsum(some.masses * np.exp(-some.losses)) == pytest.approx(1, abs=1e-12)
        assert_nowhere_below(law, some)
    # None is worse than what the mechanism promises.
    if release.mechanism == "laplace":
        assert law.losses[-1] <= release.amplified * (1 + 1e-12)
        assert law.losses[0] >= -release.amplified * (1 + 1e-12)


@pytest.mark.parametrize("release", [
    laplace(30.0, 24, 10, 1000), laplace(50.0, 1, 500, 1000), gaussian(20.0, 10, 1000)], ids=str)
def test_losses_of_a_drawn_row_that_cannot_fall_any_further_are_still_a_law(release):
    """A loss below -36 is ln(1 - g) in all digits, and so are both ends of its piece."""
    for reverse in (False, True):
        law = directed(release, reverse=reverse)
        assert np.isfinite(law.masses).all() and np.isfinite(law.losses).all()
        assert math.fsum(law.masses) == pytest.approx(1, abs=1e-12)


@given(kinds, st.floats(-6, 1))
@settings(deadline=None, max_examples=30)
@pytest.mark.slow
def test_a_coarser_lattice_is_never_better(release, log_interval):
    interval = 10**log_interval
    for law in (dominating(release), directed(release)):
        if (law.losses[-1] - law.losses[0]) / interval > 1e6:
            continue
        first, masses = on_lattice(law, interval)
        coarse = Masses((first + np.arange(len(masses))) * interval, masses)
        assert (masses >= 0).all()
        assert math.fsum(masses) == pytest.approx(math.fsum(law.masses), rel=1e-12)
        assert math.fsum(masses * np.exp(-coarse.losses)) == pytest.approx(
            math.fsum(law.masses * np.exp(-law.losses)), rel=1e-10)
        assert_nowhere_below(coarse, law)


@pytest.mark.slow
@given(kinds, st.floats(0.01, 1))
@settings(deadline=None, max_examples=30)
def test_a_shorter_shift_is_never_worse(release, part):
    """A shift of ``part`` times 2C under the same noise is one of 2C under as much less noise."""
    if release.mechanism == "gaussian":
        mu = part * 2 / release.sigma
        at = directed(release).losses[PANELS:]
        share = release.batch / release.rows
        with np.errstate(over="ignore"):
            short = share * phi_curve(np.log1p(np.expm1(at) / share), mu)
        assert (curve(directed(release), at) >= short - 1e-12).all()
        return
    for reverse in (False, True):
        short = directed(
            laplace(part * release.epsilon, release.dimension, release.batch, release.rows),
            reverse=reverse)
        long = directed(release, reverse=reverse)
        # There the shorter one's curve is exact, and the longer one's nowhere too low.
        at = short.losses
        assert (curve(long, at) >= curve(short, at) - 1e-12).all()


@given(kinds)
@settings(deadline=None, max_examples=20)
def test_every_row_in_every_batch_makes_both_directions_alike(release):
    whole = Release(release.epsilon, release.rows, release.rows, release.dimension,
                    release.mechanism, release.delta)
    forward, backward = directed(whole), directed(whole, reverse=True)
    np.testing.assert_allclose(forward.losses, backward.losses, rtol=1e-12, atol=1e-18)
    np.testing.assert_allclose(forward.masses, backward.masses, rtol=1e-9, atol=1e-18)
    # and what dominates is no more than that law itself
    np.testing.assert_allclose(dominating(whole).masses, forward.masses, rtol=1e-9, atol=1e-13)


def test_the_loss_is_small_in_many_dimensions():
    for d in (100, 1000, 10_000):
        law = directed(laplace(1.0, d))
        # noise of variance (d + 1) 4 C^2 / epsilon^2 in each number
        assert law.spread == pytest.approx(1 / math.sqrt(d), rel=0.01)


@given(st.floats(-300, 300), st.floats(1e-9, 0.999) | st.just(1.0))
@settings(deadline=None)
def test_the_loss_of_a_drawn_row_is_the_formula(loss, share):
    import mpmath

    with mpmath.workdps(300):
        exact = mpmath.log1p(mpmath.mpf(share) * mpmath.expm1(loss))
        found = float(sampled(np.array([loss]), share)[0])
        assert found == pytest.approx(float(exact), rel=1e-9, abs=1e-300)


def test_the_loss_of_a_drawn_row_where_it_is_large():
    assert sampled(np.array([800.0]), 0.25)[0] == pytest.approx(800 + math.log(0.25), rel=1e-14)
    losses = np.array([499.999, 500.001])
    assert np.diff(sampled(losses, 1e-3))[0] == pytest.approx(0.002, rel=1e-6)
    assert sampled(losses, 1.0) is losses


@given(st.floats(-30, 30), st.floats(1e-6, 10), st.floats(0, 1))
@settings(deadline=None)
def test_splitting_keeps_both_probabilities(low, width, part):
    loss = np.array([min(low + width, low + part * width)])
    ends = np.array([low]), np.array([low + width])
    down, up = split(loss, np.ones(1), *ends)
    assert 0 <= down[0] <= 1 and 0 <= up[0] <= 1
    assert down[0] + up[0] == pytest.approx(1, rel=1e-8)
    other = down[0] * math.exp(-ends[0][0]) + up[0] * math.exp(-ends[1][0])
    assert other == pytest.approx(math.exp(-loss[0]), rel=1e-8)
