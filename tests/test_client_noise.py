"""The noise: its law, its source, and what it hides.

Every statistical test draws from a fixed seed, so it always passes or always fails. LEVEL is the
probability with which a right sampler would have failed it, had the seed been drawn at random.
"""

from __future__ import annotations

import math
import secrets
from fractions import Fraction
from itertools import combinations

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import stats

from client import noise
from client.noise import (
    SNAP_BITS,
    Floats,
    Release,
    Releases,
    batches,
    clip_rows,
    gaussian,
    generator,
    isotropic_laplace,
    release,
    snap,
)

LEVEL = 1e-5
DIMENSIONS = (1, 2, 31, 1000)


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.Generator(noise.ChaCha(key=seed, rounds=noise.ROUNDS))


def draw(count: int, dimension: int, epsilon: float, clip: float, together: bool) -> Floats:
    source = rng(dimension)
    if together:  # fifty at a time, as updates of many steps do
        return np.concatenate([isotropic_laplace(dimension, epsilon, clip, source, 50)
                               for _ in range(count // 50)])
    return np.array([isotropic_laplace(dimension, epsilon, clip, source) for _ in range(count)])


@pytest.fixture(scope="module", params=[False, True], ids=["each", "together"])
def samples(request: pytest.FixtureRequest) -> dict[int, Floats]:
    """20,000 draws in each dimension, 4,000 in the highest; epsilon 0.5, clip 2."""
    return {d: draw(4_000 if d == 1000 else 20_000, d, 0.5, 2.0, request.param)
            for d in DIMENSIONS}


# -- where the randomness comes from ----------------------------------------------------------


def test_the_generator_is_chacha20_under_the_very_key_that_the_system_gave(monkeypatch):
    asked = []
    key = bytes(range(100, 132))

    def randbits(bits: int) -> int:
        asked.append(bits)
        return int.from_bytes(key, "little")

    monkeypatch.setattr(secrets, "randbits", randbits)
    stream = generator().bit_generator.random_raw(1024).astype("<u8").tobytes()
    cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    assert stream == cipher.update(bytes(8192))  # another implementation's key stream
    assert asked == [256]


def test_fresh_generators_differ():
    first = {generator().bit_generator.random_raw() for _ in range(1000)}
    assert len(first) == 1000  # by chance not so once in 2^44


@pytest.mark.parametrize("drawn", [0, 1, 7, 8, 100])
def test_a_used_generator_is_keyed_as_a_new_one_is(monkeypatch, drawn):
    keys = [bytes(range(100, 132)), bytes(range(7, 39)), bytes(range(7, 39))]
    used = generator()
    used.standard_normal(drawn)
    used.integers(5, size=drawn, dtype=np.uint8)
    monkeypatch.setattr(secrets, "randbits", lambda bits: int.from_bytes(keys.pop(0), "little"))
    for key in keys.copy():  # the last two are one and the same: the stream begins anew
        assert generator(used) is used
        stream = used.bit_generator.random_raw(1024).astype("<u8").tobytes()
        cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
        assert stream == cipher.update(bytes(8192))
        used.standard_normal(drawn)


def test_a_used_generator_knows_nothing_of_what_it_was():
    used = np.random.Generator(noise.ChaCha(key=1, rounds=8))
    first = set()
    for _ in range(1000):
        assert generator(used).bit_generator.state["state"]["rounds"] == 20
        first.add(used.bit_generator.random_raw())
    assert len(first) == 1000  # by chance not so once in 2^44


def test_a_generator_that_is_none_of_ours_is_not_keyed():
    with pytest.raises(ValueError, match="cryptographic"):
        generator(np.random.default_rng(1))


@pytest.mark.parametrize("used", [False, True])
def test_all_256_bits_of_the_key_are_drawn(used):
    old = generator() if used else None
    keys = [generator(old).bit_generator.state["state"]["keysetup"] for _ in range(200)]
    bits = np.unpackbits(np.array(keys).view(np.uint8).reshape(200, 32), axis=1)
    assert bits.shape == (200, 256)
    # Each bit is one in 100 +- 7 of 200 keys; 8 standard deviations: under 1e-12 for all bits.
    assert np.abs(bits.sum(axis=0) - 100.0).max() < 57


# -- the law ----------------------------------------------------------------------------------


@pytest.mark.parametrize("d", DIMENSIONS)
def test_the_radius_is_gamma(samples, d):
    radius = np.linalg.norm(samples[d], axis=1)
    assert stats.kstest(radius, stats.gamma(d, scale=2 * 2.0 / 0.5).cdf).pvalue > LEVEL


@pytest.mark.parametrize("d", DIMENSIONS)
def test_the_direction_is_uniform(samples, d):
    direction = samples[d] / np.linalg.norm(samples[d], axis=1, keepdims=True)
    n = len(direction)
    # n d |mean|^2 is chi-squared with d degrees of freedom as n grows.
    assert stats.chi2(d).sf(n * d * np.sum(direction.mean(axis=0) ** 2)) > LEVEL
    # d * covariance is the identity: entries are off by sqrt(2/n) on the diagonal, 1/sqrt(n)
    # elsewhere; 7 standard deviations for up to a million of them.
    covariance = d * direction.T @ direction / n
    assert np.abs(covariance - np.eye(d)).max() < 7 * math.sqrt(2 / n)
    if d == 1:
        assert stats.binomtest(int((direction > 0).sum()), n).pvalue > LEVEL
        return
    # A projection of the sphere on any line: (1 + u) / 2 is Beta((d-1)/2, (d-1)/2).
    law = stats.beta((d - 1) / 2, (d - 1) / 2).cdf
    for seed in range(3):
        line = np.random.default_rng(seed).standard_normal(d)
        projection = direction @ (line / np.linalg.norm(line))
        assert stats.kstest((1 + projection) / 2, law).pvalue > LEVEL / 3


@pytest.mark.parametrize("d", DIMENSIONS)
def test_radius_and_direction_and_successive_draws_are_independent(samples, d):
    radius, first = np.linalg.norm(samples[d], axis=1), samples[d][:, 0]
    cosine = first / radius
    assert stats.spearmanr(radius[1:], radius[:-1]).pvalue > LEVEL
    assert stats.spearmanr(first[1:], first[:-1]).pvalue > LEVEL
    assert stats.spearmanr(np.abs(first[1:]), np.abs(first[:-1])).pvalue > LEVEL
    assert stats.spearmanr(radius, cosine).pvalue > LEVEL
    if d > 1:
        assert stats.spearmanr(radius, np.abs(cosine)).pvalue > LEVEL


def test_in_one_dimension_it_is_the_laplace_distribution(samples):
    assert stats.kstest(samples[1][:, 0], stats.laplace(scale=8.0).cdf).pvalue > LEVEL


def test_the_noise_scales_with_clip_over_epsilon():
    one = isotropic_laplace(7, 1.0, 1.0, rng())
    np.testing.assert_allclose(isotropic_laplace(7, 1.0, 3.0, rng()), 3 * one, rtol=1e-14)
    np.testing.assert_allclose(isotropic_laplace(7, 4.0, 1.0, rng()), one / 4, rtol=1e-14)


@pytest.mark.parametrize("d", [1, 31, 1000])
@pytest.mark.parametrize("together", [False, True])
def test_gaussian_noise_is_independent_normal_numbers(d, together):
    kind, source = Release(0.7, 1, 1, d, "gaussian", 1e-5), rng(d)
    count = 1_000 if d == 1000 else 10_000
    seen = (noise.draw(kind, 1.7, source, count) if together else
            np.array([noise.draw(kind, 1.7, source) for _ in range(count)])) / (1.7 * kind.sigma)
    assert seen.shape == (count, d)
    assert stats.kstest(seen.ravel(), stats.norm.cdf).pvalue > LEVEL
    assert stats.kstest(seen[:, 0], stats.norm.cdf).pvalue > LEVEL
    # each one's length; and neither neighbours in a draw nor draws know of each other
    assert stats.kstest((seen**2).sum(axis=1), stats.chi2(d).cdf).pvalue > LEVEL
    for x in (seen, np.abs(seen)):
        assert stats.spearmanr(x[1:, 0], x[:-1, 0]).pvalue > LEVEL
        if d > 1:
            assert stats.spearmanr(x[:, 0], x[:, 1]).pvalue > LEVEL
    covariance = seen.T @ seen / count
    # entries are off by sqrt(2 / n) at most; 7 standard deviations for up to a million of them
    assert np.abs(covariance - np.eye(d)).max() < 7 * math.sqrt(2 / count)


def test_draw_is_the_mechanism_that_the_kind_says():
    kind = Release(0.7, 3, 9, 5)
    np.testing.assert_array_equal(
        noise.draw(kind, 1.5, rng(9)), isotropic_laplace(5, 0.7, 1.5, rng(9)))
    kind = Release(0.7, 3, 9, 5, "gaussian", 1e-6)
    np.testing.assert_array_equal(
        noise.draw(kind, 1.5, rng(9)), gaussian(5, 1.5 * kind.sigma, rng(9)))


@pytest.mark.parametrize("kind", [Release(0.6, 4, 9, 7), Release(0.6, 4, 9, 7, "gaussian", 1e-5)],
                         ids=lambda kind: kind.mechanism)
def test_the_noise_ratio_is_the_root_of_the_mean_square(kind):
    source, count = rng(3), 20_000
    squares = [np.sum((noise.draw(kind, 2.0, source) / (kind.batch * 2.0))**2)
               for _ in range(count)]
    error = np.std(squares) / math.sqrt(count)
    assert abs(np.mean(squares) - kind.noise_ratio**2) < 5 * error  # 5 sigma: under 1e-6
    if kind.mechanism == "laplace":
        assert kind.noise_ratio == pytest.approx(2 * math.sqrt(7 * 8) / (0.6 * 4))


def test_a_zero_direction_is_drawn_again():
    class Zero:
        draws = 0

        def standard_normal(self, size: int | tuple[int, int]) -> Floats:
            self.draws += 1
            return np.full(size, float(self.draws > 2))

        def gamma(self, shape: float, scale: float, count: int = 1) -> Floats:
            return np.full(count, 5.0)

    assert isotropic_laplace(1, 1.0, 1.0, Zero()) == [5.0]  # type: ignore[arg-type]
    told = isotropic_laplace(1, 1.0, 1.0, Zero(), 3)  # type: ignore[arg-type]
    assert told.tolist() == [[5.0]] * 3


# -- batches ----------------------------------------------------------------------------------


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
       st.integers(1, 30), st.integers(0, 2**32))
def test_batches_have_rows_that_are_there_and_none_twice(sizes, count, seed):
    n, b = sizes
    chosen = batches(Release(1.0, b, n, 3), count, np.random.default_rng(seed))
    assert chosen.shape == (count, b)
    assert (chosen >= 0).all() and (chosen < n).all()
    assert all(len(set(batch)) == b for batch in chosen.tolist())


@pytest.mark.parametrize(("n", "b"), [(9, 1), (4, 2), (9, 2), (9, 3), (5, 3), (5, 4), (6, 5)])
def test_every_batch_is_as_likely_and_none_knows_of_the_one_before(n, b):
    """Both ways of drawing: b * b up to n, and above."""
    every = {batch: place for place, batch in enumerate(combinations(range(n), b))}
    source = rng(10 * n + b)
    seen = [every[tuple(sorted(batch))] for _ in range(1_000)
            for batch in batches(Release(1.0, b, n, 3), 10, source).tolist()]
    assert stats.chisquare(np.bincount(seen, minlength=len(every))).pvalue > LEVEL
    table = np.zeros((len(every), len(every)))
    np.add.at(table, (seen[:-1], seen[1:]), 1)
    assert stats.chi2_contingency(table).pvalue > LEVEL


# -- the clip ---------------------------------------------------------------------------------

numbers = st.floats(allow_nan=False, allow_infinity=False, width=64)
gradients = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=numbers)
bounds = st.floats(1e-9, 1e9)


def square_norm(row: Floats) -> Fraction:
    return sum((Fraction(float(x)) ** 2 for x in row), Fraction(0))


# Where no square over- or underflows there is a shorter way, for all rows or none.
plain = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=8),
               elements=st.floats(-1e9, 1e9, allow_subnormal=False))
tight = st.floats(1e-300, 1e-120) | st.floats(1e120, 1e300)


@given(gradients | plain, bounds | tight)
def test_no_clipped_row_is_longer_than_the_bound_in_exact_arithmetic(rows, bound):
    clipped = clip_rows(rows, bound)
    assert clipped.shape == rows.shape
    for before, after in zip(rows, clipped, strict=True):
        assert square_norm(after) <= Fraction(bound) ** 2
        if square_norm(before) <= Fraction(bound) ** 2 * (1 - Fraction(1, 10**12)):
            assert (before == after).all()
        elif bound > 1e-290:  # below, doubles do not have all their digits
            assert square_norm(after) >= Fraction(bound) ** 2 * (1 - Fraction(1, 10**12))


@pytest.mark.slow
def test_the_bound_holds_for_long_rows_just_around_it():
    source = np.random.default_rng(3)
    rows = source.standard_normal((40, 3000))
    rows *= (1 + source.uniform(-1e-15, 1e-15, (40, 1))) / np.linalg.norm(rows, axis=1)[:, None]
    for row in clip_rows(rows, 1.0):
        assert square_norm(row) <= 1


def test_clipping_keeps_the_direction_and_the_argument():
    rows = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [3e200, 4e200], [3e-200, 4e-200]])
    kept = rows.copy()
    clipped = clip_rows(rows, 1.0)
    expected = [[0.6, 0.8], [0.3, 0.4], [0, 0], [0.6, 0.8], [3e-200, 4e-200]]
    np.testing.assert_allclose(clipped, expected, rtol=1e-14)
    assert (rows == kept).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_becomes_zeros_and_does_not_touch_the_others(bad):
    clipped = clip_rows([[1.0, bad], [0.5, 0.0], [bad, bad]], 1.0)
    np.testing.assert_array_equal(clipped, [[0, 0], [0.5, 0], [0, 0]])


@given(gradients, bounds, st.data())
def test_replacing_a_row_moves_the_clipped_sum_by_at_most_twice_the_clip(rows, bound, data):
    index = data.draw(st.integers(0, len(rows) - 1))
    other = rows.copy()
    other[index] = data.draw(arrays(np.float64, rows.shape[1], elements=st.floats()))
    moved = clip_rows(rows, bound).sum(axis=0) - clip_rows(other, bound).sum(axis=0)
    # the sum itself is rounded: by at most 8 rows x 2^-52 of the clip
    assert np.linalg.norm(moved / bound) <= 2 * (1 + 1e-14)


def test_what_makes_no_sense_is_refused():
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="clip"):
            clip_rows(np.ones((2, 2)), bad)
        with pytest.raises(ValueError, match="epsilon"):
            isotropic_laplace(2, bad, 1.0, rng())
        with pytest.raises(ValueError, match="epsilon"):
            Release(bad, 1, 2, 3)
        with pytest.raises(ValueError, match="epsilon"):
            Release(bad, 1, 2, 3, "gaussian", 1e-6)
        with pytest.raises(ValueError, match="deviation"):
            gaussian(2, bad, rng())
    with pytest.raises(ValueError, match="dimension"):
        isotropic_laplace(0, 1.0, 1.0, rng())
    with pytest.raises(ValueError, match="dimension"):
        gaussian(0, 1.0, rng())
    with pytest.raises(ValueError, match="2"):
        clip_rows(np.ones(3), 1.0)
    for batch, rows, dimension in ((0, 5, 3), (6, 5, 3), (1, 5, 0)):
        with pytest.raises(ValueError, match=r"batch|dimension"):
            Release(1.0, batch, rows, dimension)
    with pytest.raises(ValueError, match="mechanism"):
        Release(1.0, 1, 2, 3, "none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no delta"):
        Release(1.0, 1, 2, 3, "laplace", 1e-6)
    for delta in (0.0, 1e-31, 0.5, -1.0, math.nan):
        with pytest.raises(ValueError, match="delta"):
            Release(1.0, 1, 2, 3, "gaussian", delta)
    with pytest.raises(ValueError, match="100"):
        Release(100.1, 1, 2, 3, "gaussian", 1e-6)
    with pytest.raises(ValueError, match="sigma"):
        _ = Release(1.0, 1, 2, 3).sigma


# -- the release ------------------------------------------------------------------------------


KINDS = (Release(0.7, 10, 10, 4), Release(0.7, 10, 99, 4, "gaussian", 1e-6),
         Release(1e-6, 10, 10, 4), Release(1e5, 10, 10, 4))


def grid_of(kind: Release, clip: float) -> float:
    """A power of two, 2^-20 of the deviation of one of the noise's numbers, or up to 2^-19."""
    deviation = kind.noise_ratio * clip / math.sqrt(kind.dimension)
    return math.ldexp(1.0, math.floor(math.log2(deviation)) + 1 - SNAP_BITS)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_release_is_the_clipped_sum_and_noise_over_the_batch_on_a_grid(kind):
    rows = np.random.default_rng(5).standard_normal((10, 4)) * 3
    for clip in (1.5, 1e-3):
        exact = (clip_rows(rows, clip).sum(axis=0) + noise.draw(kind, clip, rng(9))) / kind.batch
        told, grid = release(rows, clip, kind, rng(9)), grid_of(kind, clip)
        assert all((Fraction(float(x)) / Fraction(grid)).denominator == 1 for x in told)
        assert np.abs(told - exact).max() <= grid / 2 * (1 + 1e-9)
        assert np.abs(told - exact).max() > 0 or kind.epsilon > 1e4


def test_the_grid_is_the_same_whatever_the_rows():
    """What two data sets can release is one and the same set of numbers."""
    kind, source = Release(0.7, 10, 10, 4), np.random.default_rng(6)
    for size in range(-20, 20):
        rows = source.standard_normal((10, 4)) * 10.0**size
        told = release(rows, 1.5, kind, rng(size + 21))
        grid = Fraction(grid_of(kind, 1.5))
        assert all((Fraction(float(x)) / grid).denominator == 1 for x in told)


@pytest.mark.parametrize("batch", [3, 7, 10, 60])
def test_the_grid_tells_nothing_of_the_batch(batch):
    """A power of two, and the same one for all batches whose noise is of one size: of multiples
    of something over b, a broker could read b, and with a batch of all rows their number."""
    grid = Fraction(grid_of(Release(6.0, 1, 100, 4), 1.5))
    told = release(np.ones((batch, 4)), 1.5, Release(6.0 / batch, batch, 100, 4), rng(3))
    steps = [Fraction(float(x)) / grid for x in told]
    assert all(step.denominator == 1 for step in steps)
    assert math.gcd(*(step.numerator for step in steps)) % batch


def test_a_release_refuses_another_shape_than_the_kinds():
    kind = Release(1.0, 2, 5, 3)
    for shape in ((0, 3), (1, 3), (3, 3), (2, 2), (2, 4)):
        with pytest.raises(ValueError, match="shape"):
            release(np.ones(shape), 1.0, kind, rng())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_releases_of_one_update_are_on_the_grid_with_noise_of_their_own(kind):
    rows = np.random.default_rng(5).standard_normal((20, 10, 4)) * 3
    noises, releases = noise.draw(kind, 1.5, rng(9), 20), Releases(kind, 1.5, 20, rng(9))
    for mine, own in zip(rows, noises, strict=True):
        told = releases.release(mine)
        exact = (clip_rows(mine, 1.5).sum(axis=0) + own) / kind.batch
        np.testing.assert_array_equal(
            told, snap(exact, kind.noise_ratio * 1.5 / math.sqrt(kind.dimension)))
    assert len({own.tobytes() for own in noises}) == 20


def test_no_noise_is_used_twice():
    kind = Release(1.0, 2, 5, 3)
    releases = Releases(kind, 1.0, 2, rng())
    with pytest.raises(ValueError, match="shape"):
        releases.release(np.ones((1, 3)))
    for _ in range(2):
        releases.release(np.ones((2, 3)))
    for _ in range(2):
        with pytest.raises(ValueError, match="no noise is left"):
            releases.release(np.ones((2, 3)))


def test_what_is_told_has_the_law_of_the_noise():
    """The grid is a millionth of it."""
    kind = Release(0.5, 1, 1, 1)
    told = np.array([release([[0.0]], 2.0, kind, source)[0]
                     for source in [rng(4)] for _ in range(10_000)])
    assert stats.kstest(told, stats.laplace(scale=8.0).cdf).pvalue > LEVEL


values = arrays(np.float64, 5, elements=st.floats(-1e6, 1e6))


@given(values, st.floats(1e-12, 1e12))
def test_snapping_leaves_multiples_of_a_power_of_two(numbers, scale):
    snapped = snap(numbers, scale)
    grid = math.ldexp(1.0, math.frexp(scale)[1] - SNAP_BITS)
    assert 2.0**-SNAP_BITS * scale < grid <= 2.0**(1 - SNAP_BITS) * scale
    for before, after in zip(numbers, snapped, strict=True):
        # in exact arithmetic
        assert (Fraction(float(after)) / Fraction(grid)).denominator == 1
        assert abs(Fraction(float(after)) - Fraction(float(before))) <= Fraction(grid) / 2
    np.testing.assert_array_equal(snap(snapped, scale), snapped)
    np.testing.assert_array_equal(snap(-numbers, scale), -snapped)


@given(values, st.floats(-1e6, 1e6), st.floats(1e-3, 1e3))
def test_the_grid_does_not_depend_on_the_values(numbers, other, scale):
    np.testing.assert_array_equal(
        snap(np.append(numbers, other), scale)[:5], snap(numbers, scale))


def test_snapping_at_its_limits():
    assert snap(np.array([1e-200, 3.0, 0.0]), 1e-320).tolist() == [1e-200, 3.0, 0.0]
    assert snap(np.array([5.0]), 1e300).tolist() == [0.0]
    assert snap(np.array([1e300]), 1e300) == pytest.approx(1e300, rel=1e-5)


def test_the_kinds_of_an_old_ledger_are_read():
    old = b'{"epsilon":1.0,"batch":10,"rows":2100,"dimension":25,"mechanism":"laplace"}'
    kind = msgspec.json.decode(old, type=Release)
    assert kind == Release(1.0, 10, 2100, 25)
    assert msgspec.json.decode(b'{"epsilon":1.0,"batch":10,"rows":2100,"dimension":25}',
                               type=Release) == kind
    for kind in KINDS:
        assert msgspec.json.decode(msgspec.json.encode(kind), type=Release) == kind
    for wrong in (b'{"epsilon":1.0,"batch":10,"rows":9,"dimension":25}',
                  b'{"epsilon":1.0,"batch":1,"rows":9,"dimension":25,"mechanism":"gaussian"}',
                  b'{"epsilon":1.0,"batch":1,"rows":9,"dimension":25,"delta":1e-6}'):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(wrong, type=Release)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_density_ratio_of_neighbours_is_within_epsilon_and_reaches_it(d):
    epsilon, clip = 1.3, 0.7
    one, other = np.zeros(d), np.zeros(d)
    one[0], other[0] = clip, -clip  # the farthest that two neighbours' sums are apart
    points = np.random.default_rng(d).standard_normal((100_000, d)) * 3
    points[:2] = 5 * one, 5 * other

    def log_density(center: Floats) -> Floats:
        return -epsilon / (2 * clip) * np.linalg.norm(points - center, axis=1)

    ratio = log_density(one) - log_density(other)
    assert np.abs(ratio).max() <= epsilon * (1 + 1e-12)
    assert ratio[0] == pytest.approx(epsilon)


def observed_epsilon(d: int, epsilon: float, count: int = 25_000) -> float:
    """A lower bound on the epsilon of :func:`release`, from what comes out on two neighbours.

    Wrong (above the true one) with probability at most LEVEL: Clopper and Pearson's limits on
    either side of each of 20 events fixed beforehand, shared out among them (Bonferroni).
    """
    clip, b = 1.0, 2
    kind = Release(epsilon, b, b, d)
    one, other = np.zeros((b, d)), np.zeros((b, d))
    one[1, 0], other[1, 0] = 5.0, -5.0
    source = rng(100 + d)
    seen = [
        np.array([release(data, clip, kind, source)[0] for _ in range(count)]) * b
        for data in (one, other)
    ]
    bound = 0.0
    edges = np.linspace(-4, 4, 11)
    risk = LEVEL / (2 * 2 * len(edges))
    for edge in edges:
        for p, q in ((seen[0] > edge, seen[1] > edge), (seen[1] < edge, seen[0] < edge)):
            hits, misses = int(p.sum()), int(q.sum())
            low = stats.beta.ppf(risk, hits, count - hits + 1) if hits else 0.0
            high = stats.beta.ppf(1 - risk, misses + 1, count - misses)
            bound = max(bound, math.log(low / high) if low > 0 else 0.0)
    return bound


@pytest.mark.slow
@pytest.mark.parametrize("d", [1, 2, 3])
def test_no_more_than_epsilon_can_be_observed(d):
    assert observed_epsilon(d, 1.0) <= 1.0


@pytest.mark.slow
def test_the_observer_is_not_blind():
    assert observed_epsilon(1, 1.0) > 0.85  # sees nearly all there is to see
    assert observed_epsilon(1, 2.0) > 1.0  # and would have noticed noise half as large


# -- amplification by sampling ----------------------------------------------------------------

shares = st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n)))


@given(st.floats(1e-12, 1e4), shares)
@settings(max_examples=300, deadline=None)
def test_amplification_is_the_formula_to_the_last_digits(epsilon, share):
    import mpmath

    b, n = share
    with mpmath.workdps(40):
        exact = mpmath.log1p(mpmath.mpf(b) / n * mpmath.expm1(mpmath.mpf(epsilon)))
        assert float(exact) == pytest.approx(Release(epsilon, b, n, 3).amplified, rel=1e-14)


def test_amplification_at_its_limits():
    assert Release(1.0, 10, 2100, 25).amplified == pytest.approx(0.0081490, abs=1e-7)
    for epsilon in (1e-9, 0.3, 50.0, 699.9, 700.1, 1e6):
        assert Release(epsilon, 7, 7, 1).amplified == epsilon  # every row is in every batch
        assert 0 < Release(epsilon, 1, 10**6, 1).amplified < epsilon
    # large: all but ln(n/b) of it is left
    assert Release(50.0, 1, 100, 1).amplified == pytest.approx(50 - math.log(100), rel=1e-14)
    assert Release(1e6, 1, 100, 1).amplified == pytest.approx(1e6 - math.log(100), rel=1e-14)
    # small: the share of it
    assert Release(1e-9, 1, 1000, 1).amplified == pytest.approx(1e-12, rel=1e-8)


@given(st.floats(1e-6, 60), shares)
def test_amplification_agrees_with_a_mechanism_that_needs_all_of_it(epsilon, share):
    """Randomised response on one row of the batch: its ratio over the batches *is* the bound."""
    b, n = share
    truth, lie = 1 / (1 + math.exp(-epsilon)), 1 / (1 + math.exp(epsilon))
    # "is the special row in the batch?", answered truthfully with that probability
    seen = b / n * truth + (1 - b / n) * lie
    amplified = Release(epsilon, b, n, 1).amplified
    assert amplified == pytest.approx(math.log(seen / lie), rel=1e-9, abs=1e-14)
