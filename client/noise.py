"""Clip, sample exactly, describe the release.

One release is ``(sum of the clipped per-example gradients + Z) / b`` over a batch of ``b`` rows
drawn uniformly without replacement from the client's ``n``, afresh for each release. Replacing one
row of the batch moves the clipped sum by at most ``2C``. ``Z`` is one of

- *Laplace*: the K-norm mechanism of the L2 norm (Hardt and Talwar, "On the geometry of
  differential privacy", STOC 2010; Chaudhuri, Monteleoni and Sarwate, JMLR 12, 2011, use the same
  noise): density proportional to ``exp(-(epsilon / 2C) |z|)``, so its radius is Gamma(d,
  2C / epsilon) and its direction is uniform. One release is epsilon-differentially private for the
  batch.
- *Gaussian*: independent normal numbers, of which one release is (epsilon, delta)-differentially
  private for the batch (:attr:`Release.sigma`).

:mod:`client.privacy_loss` says what that means for the whole data set, :mod:`client.accounting`
what many releases come to.

Time and randomness come in as arguments: all but :func:`generator` is a pure function.

Known limit: the theorems are about real numbers, and a double is not one. The low bits of a sum
with floating-point noise depend on what the noise was added to (Mironov, "On significance of the
least significant bits for differential privacy", CCS 2012). :func:`snap` throws them away: what is
released lies on a grid that is the same for all data, with millions of doubles behind each point.
That takes the known attacks their ground; it is no proof, which only integer samplers have
(Canonne, Kamath and Steinke, NeurIPS 2020). How long a draw takes depends on the noise, and is not
hidden (Jin, McMurtry, Rubinstein and Ohrimenko, "Are we there yet?", IEEE S&P 2022).
"""

from __future__ import annotations

import math
import secrets
from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from randomgen.chacha import ChaCha

Floats = npt.NDArray[np.float64]

Mechanism = Literal["laplace", "gaussian"]

MOST_GAUSSIAN: Final = 100.0
"""Largest epsilon of Gaussian noise; it is next to nothing long before."""

LEAST_DELTA: Final = 1e-12
"""Smallest delta of one release with Gaussian noise."""

SNAP_BITS: Final = 20
"""A release is told with so many bits below the size of its noise, which loses nothing."""

KEY_BITS: Final = 256
ROUNDS: Final = 20
_LARGE_EPSILON: Final = 700.0  # exp(709.8) is the largest that a double holds
_EPS: Final = 2.0**-52
_PLAIN: Final = 1e-140  # the square of what is between it and 1 / it is a double with all digits


class Release(Struct, frozen=True, omit_defaults=True):
    """One release as data: what the ledger needs to account for it, and nothing more.

    The clip is not here, as the noise grows with it and it cancels from the privacy.

    Attributes:
        epsilon: privacy of one release for the batch, under replacement of one of its rows.
        batch: rows in a batch, drawn uniformly without replacement, afresh for each release.
        rows: rows in the data set.
        dimension: numbers released.
        mechanism: the law of the noise; "laplace" is :func:`isotropic_laplace`, "gaussian" has
            independent normal numbers of standard deviation :attr:`sigma` times C.
        delta: the chance at which a Gaussian release's epsilon may fail; 0 for Laplace, which
            needs none.

    Raises:
        ValueError: epsilon is not positive and finite, or not ``1 <= batch <= rows``, or the
            dimension is less than 1; or for Gaussian noise epsilon is above
            :data:`MOST_GAUSSIAN` or delta is not between :data:`LEAST_DELTA` and 0.5.
    """

    epsilon: float
    batch: int
    rows: int
    dimension: int
    mechanism: Mechanism = "laplace"
    delta: float = 0.0

    def __post_init__(self) -> None:
        _positive("epsilon", self.epsilon)
        if not 1 <= self.batch <= self.rows:
            raise ValueError(f"a batch of {self.batch} out of {self.rows} rows")
        if self.dimension < 1:
            raise ValueError(f"dimension {self.dimension} is less than 1")
        if self.mechanism == "laplace":
            if self.delta != 0:
                raise ValueError("Laplace noise has no delta")
        elif self.mechanism == "gaussian":
            if not LEAST_DELTA <= self.delta < 0.5:
                raise ValueError(f"delta {self.delta} is not between {LEAST_DELTA} and 0.5")
            if self.epsilon > MOST_GAUSSIAN:
                raise ValueError(f"epsilon {self.epsilon} of Gaussian noise is above 100")
        else:
            raise ValueError(f"no mechanism named {self.mechanism!r}")

    @property
    def noise_ratio(self) -> float:
        """Root mean square length of one release's noise over the greatest that the mean of the
        clipped gradients can have, ``C``: for Laplace ``2 sqrt(d (d + 1)) / (epsilon b)``."""
        d = self.dimension
        if self.mechanism == "gaussian":
            return self.sigma * math.sqrt(d) / self.batch
        return 2 * math.sqrt(d * (d + 1)) / (self.epsilon * self.batch)

    @property
    def sigma(self) -> float:
        """Standard deviation of each number of Gaussian noise, in units of C; rounded up.

        The least at which a shift of 2C is (epsilon, delta)-differentially private, exactly:
        Balle and Wang, "Improving the Gaussian mechanism for differential privacy", ICML 2018,
        Theorem 8.

        Raises:
            ValueError: the noise is not Gaussian.
        """
        if self.mechanism != "gaussian":
            raise ValueError("only Gaussian noise has a sigma")
        return _sigma(self.epsilon, self.delta)

    @property
    def amplified(self) -> float:
        """Privacy of one release for the whole data set: ``ln(1 + (b/n)(e^epsilon - 1))``.

        Holds for batches of a fixed size drawn uniformly without replacement, neighbours being
        data sets of ``n`` rows that differ in one of them: Balle, Barthe and Gaboardi, "Privacy
        amplification by subsampling: tight analyses via couplings and divergences", NeurIPS 2018
        (arXiv:1807.01647), Theorem 9.
        """
        if self.batch == self.rows:
            return self.epsilon
        share = self.batch / self.rows
        if self.epsilon < _LARGE_EPSILON:
            # exact to a few units in the last place even where the result is tiny
            inside = math.log1p(share * math.expm1(self.epsilon))
        else:
            inside = self.epsilon + math.log(share + (1 - share) * math.exp(-self.epsilon))
        return min(self.epsilon, inside)


@lru_cache(maxsize=256)
def _sigma(epsilon: float, delta: float) -> float:
    """Twice the least ratio s of deviation to shift with
    ``Phi(1/2s - epsilon s) - e^epsilon Phi(-1/2s - epsilon s) <= delta``, by bisection."""
    # Imported here: it takes half a second, which Laplace noise need not wait for.
    from scipy.special import log_ndtr

    def too_little(ratio: float) -> bool:
        high = float(log_ndtr(0.5 / ratio - epsilon * ratio))
        low = epsilon + float(log_ndtr(-0.5 / ratio - epsilon * ratio))
        return high + math.log(-math.expm1(min(low - high, -1e-300))) > math.log(delta)

    low, high = 1e-3, 1e-3
    while too_little(high):
        low, high = high, 2 * high
    while high > low * (1 + 1e-12):
        middle = (low + high) / 2
        low, high = (middle, high) if too_little(middle) else (low, middle)
    return 2 * high * (1 + 1e-9)


def generator(used: np.random.Generator | None = None) -> np.random.Generator:
    """A fresh cryptographic generator: ChaCha with 20 rounds, keyed by the operating system.

    The 256 bits are the cipher's key itself (``key=``; ``seed=`` would be hashed first). This is
    the only place that asks the operating system for randomness.

    Args:
        used: one that came from here and has done its work. It is keyed afresh, set to the first
            number of the new key's stream, and given back: making another takes ten times as
            long, as ChaCha asks the processor each time what it can do.

    Raises:
        ValueError: what is given did not come from here.
    """
    key = secrets.randbits(KEY_BITS)
    if used is None:
        return np.random.Generator(ChaCha(key=key, rounds=ROUNDS))
    bits = used.bit_generator
    if not isinstance(bits, ChaCha):
        raise ValueError("this generator is not a cryptographic one")
    # Whoever draws holds the lock, so nobody ever draws with half of a key.
    with bits.lock:
        state: dict[str, Any] = dict(bits.state)
        state["state"] |= {
            "keysetup": np.frombuffer(key.to_bytes(KEY_BITS // 8, "little"), dtype="<u4"),
            "ctr": np.zeros(2, np.uint64), "rounds": ROUNDS,
            "block": np.zeros(16, np.uint32)}  # made when the first number is asked for
        bits.state = state
    return used


def clip_rows(gradients: npt.ArrayLike, bound: float) -> Floats:
    """Shorten every row to an L2 norm of at most ``bound``; shorter rows are left as they are.

    The bound is kept in exact arithmetic, not only up to rounding: rows are clipped to a target
    that is below it by more than all rounding errors here can add up to, ``(d + 8) 2^-52`` of
    it (for bounds over 1e-290, where doubles have all their digits). A row that is not finite
    becomes zeros: a refusal, or a NaN sent on, would tell of that row.

    Args:
        gradients: shape (n, d), one row per example.
        bound: positive and finite, in the gradients' own unit.

    Returns:
        A new array of the same shape.

    Raises:
        ValueError: not two-dimensional, or the bound is not positive and finite.
    """
    _positive("clip", bound)
    rows = np.array(gradients, dtype=np.float64, order="C")
    if rows.ndim != 2:
        raise ValueError(f"gradients have {rows.ndim} dimensions instead of 2")
    target = bound * (1 - (rows.shape[1] + 8) * _EPS)
    if _PLAIN < bound < 1 / _PLAIN and rows.size:
        squares = np.einsum("ij,ij->i", rows, rows)
        # No square overflows here, and what underflows is nothing beside the bound. (Not-a-number
        # is not less.)
        most, enough = np.maximum.reduce(squares), target * target
        if most <= enough:
            return rows
        if most < 1 / _PLAIN**2:
            # The root of a rounded square is what was squared, so shorter rows are multiplied by
            # exactly 1.
            np.maximum(squares, enough, out=squares)
            np.sqrt(squares, out=squares)
            np.divide(target, squares, out=squares)
            rows *= squares[:, None]
            return rows
    peak = np.abs(rows).max(axis=1, initial=0.0)
    lost = ~np.isfinite(peak)
    rows[lost], peak[lost] = 0.0, 0.0
    # Scaled by a power of two, which is exact, so that no square over- or underflows.
    exponent = np.frexp(peak)[1] - 1
    scaled = np.ldexp(rows, -exponent[:, None])
    length = np.sqrt(np.square(scaled).sum(axis=1))
    with np.errstate(over="ignore"):  # longer than the largest double is longer than the bound
        long = np.ldexp(length, exponent) > target
    rows[long] = scaled[long] * (target / length[long])[:, None]
    return rows


def isotropic_laplace(
    dimension: int, epsilon: float, clip: float, rng: np.random.Generator, count: int | None = None
) -> Floats:
    """Draw noise with density proportional to ``exp(-(epsilon / 2C) |z|)``, ``|z|`` the L2 norm.

    Args:
        dimension: d, at least 1.
        epsilon: privacy of one release under replacement of one row of the batch.
        clip: C, the bound on the norm of each row's gradient.
        rng: where the randomness comes from; :func:`generator` outside of tests.
        count: of independent draws; None for one.

    Returns:
        Shape (count, d), or (d,) where no count is given; in the gradients' own unit.

    Raises:
        ValueError: the dimension is less than 1, or epsilon or clip is not positive and finite.
    """
    _positive("epsilon", epsilon)
    _positive("clip", clip)
    if dimension < 1:
        raise ValueError(f"dimension {dimension} is less than 1")
    scale = 2 * clip / epsilon
    if count is None:
        length = 0.0
        while length == 0.0:  # once in 2^50 draws in one dimension; zero has no direction
            direction = rng.standard_normal(dimension)
            length = math.sqrt(direction @ direction)
        one: Floats = direction * (rng.gamma(dimension, scale) / length)
        return one
    directions = rng.standard_normal((count, dimension))
    lengths = np.sqrt(np.einsum("ij,ij->i", directions, directions))
    while not np.logical_and.reduce(lengths):
        zero = lengths == 0.0
        directions[zero] = rng.standard_normal((int(zero.sum()), dimension))
        lengths[zero] = np.sqrt(np.einsum("ij,ij->i", directions[zero], directions[zero]))
    directions *= (rng.gamma(dimension, scale, count) / lengths)[:, None]
    return directions


def gaussian(
    dimension: int, deviation: float, rng: np.random.Generator, count: int | None = None
) -> Floats:
    """Draw independent normal numbers.

    Args:
        dimension: how many, at least 1.
        deviation: their standard deviation, in the gradients' own unit.
        rng: where the randomness comes from; :func:`generator` outside of tests.
        count: of independent draws; None for one.

    Returns:
        Shape (count, d), or (d,) where no count is given.

    Raises:
        ValueError: the dimension is less than 1, or the deviation is not positive and finite.
    """
    _positive("deviation", deviation)
    if dimension < 1:
        raise ValueError(f"dimension {dimension} is less than 1")
    shape = dimension if count is None else (count, dimension)
    return np.asarray(deviation * rng.standard_normal(shape))


def draw(
    kind: Release, clip: float, rng: np.random.Generator, count: int | None = None
) -> Floats:
    """The noise of releases of this kind, in the gradients' own unit.

    Args:
        kind: of the releases.
        clip: C, the bound on the norm of each row's gradient.
        rng: a generator that is used for the releases of one update only.
        count: of releases; None for one.

    Returns:
        Shape (count, d), each independent of the others; or (d,) where no count is given.

    Raises:
        ValueError: as :func:`isotropic_laplace` and :func:`gaussian`.
    """
    if kind.mechanism == "gaussian":
        return gaussian(kind.dimension, kind.sigma * clip, rng, count)
    return isotropic_laplace(kind.dimension, kind.epsilon, clip, rng, count)


def batches(kind: Release, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """The rows of that many batches: each ``b`` of the ``n``, uniformly without replacement, and
    independent of the others.

    Args:
        kind: of the releases that they are for.
        count: how many.
        rng: a generator that is used for the releases of one update only.

    Returns:
        Numbers of rows, from 0, shape (count, b).
    """
    n, b = kind.rows, kind.batch
    if b * b > n:  # else most of those below would hold a row twice
        return np.array([rng.choice(n, size=b, replace=False, shuffle=False)
                         for _ in range(count)], dtype=np.int64)
    # Of b rows drawn with replacement, those which are all different are as likely each.
    drawn = rng.integers(n, size=(count, b))
    while True:
        ordered = np.sort(drawn, axis=1)
        twice = np.logical_or.reduce(ordered[:, 1:] == ordered[:, :-1], axis=1)
        if not np.logical_or.reduce(twice):
            return drawn
        drawn[twice] = rng.integers(n, size=(int(twice.sum()), b))


def snap(values: Floats, scale: float) -> Floats:
    """Round to multiples of about ``2^-20 scale``, a power of two, so that no low bit is left.

    Args:
        values: of any shape, in the unit of ``scale``.
        scale: positive; it must not depend on the data.
    """
    grid = _grid(scale)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.rint(values / grid) * grid)


def _grid(scale: float) -> float:
    return math.ldexp(1.0, max(-1000, math.frexp(scale)[1] - SNAP_BITS))


class Releases:
    """The releases of one update, whose noise is drawn together, beforehand, and used once each.

    Args:
        kind: what the ledger was told of each of them.
        clip: C, the bound on the norm of each row.
        count: how many there are.
        rng: a generator that is used for the releases of one update only.

    Raises:
        ValueError: as :func:`draw`.
    """

    def __init__(
        self, kind: Release, clip: float, count: int, rng: np.random.Generator
    ) -> None:
        self._kind = kind
        self._clip = clip
        self._shape = (kind.batch, kind.dimension)
        self._noises = iter(draw(kind, clip, rng, count))
        # A power of two around a millionth of the noise, whose size anyone can estimate.
        self._grid = _grid(kind.noise_ratio * clip / math.sqrt(kind.dimension))

    def release(self, gradients: npt.ArrayLike) -> Floats:
        """What may leave the client: ``(sum of the clipped rows + Z) / b``.

        Args:
            gradients: shape (b, d), one row per example of the batch.

        Returns:
            Shape (d,), in the gradients' own unit.

        Raises:
            ValueError: the shape is not the kind's batch and dimension, there were as many
                releases as noises already, or as :func:`clip_rows`.
        """
        clipped = clip_rows(gradients, self._clip)
        if clipped.shape != self._shape:
            raise ValueError(f"gradients of shape {clipped.shape}, not {self._shape}")
        noise = next(self._noises, None)
        if noise is None:
            raise ValueError("no noise is left")
        told: Floats = np.add.reduce(clipped, axis=0)
        told += noise
        # The mean is what is rounded: of multiples of something over b, anyone could read b. The
        # grid is a power of two, so this is rounded as :func:`snap` does it.
        told /= self._kind.batch * self._grid
        np.rint(told, out=told)
        told *= self._grid
        return told


def release(
    gradients: npt.ArrayLike, clip: float, kind: Release, rng: np.random.Generator
) -> Floats:
    """One release by itself: :class:`Releases` of one."""
    return Releases(kind, clip, 1, rng).release(gradients)


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} {value} is not positive and finite")
