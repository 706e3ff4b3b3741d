"""Clip, sample exactly, describe the release.

One release is ``(sum of the clipped per-example gradients + Z) / b`` over a batch of ``b`` rows
drawn uniformly without replacement from the client's ``n``, afresh for each release. ``Z`` is the
K-norm mechanism of the L2 norm (Hardt and Talwar, "On the geometry of differential privacy", STOC
2010; Chaudhuri, Monteleoni and Sarwate, JMLR 12, 2011, use the same noise): density proportional
to ``exp(-(epsilon / 2C) |z|)``, so its radius is Gamma(d, 2C / epsilon) and its direction is
uniform. Replacing one row of the batch moves the clipped sum by at most ``2C``, which makes one
release epsilon-differentially private for the batch; :attr:`Release.amplified` is what that means
for the whole data set.

Time and randomness come in as arguments: all but :func:`generator` is a pure function.

Known limit: the theorem is about real numbers, and a double is not one. The low bits of a
floating-point noise sample depend on the value that it was added to (Mironov, "On significance of
the least significant bits for differential privacy", CCS 2012). No attack on noise in more than
one dimension is known to us, and none is excluded here.
"""

from __future__ import annotations

import math
import secrets
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from randomgen.chacha import ChaCha

Floats = npt.NDArray[np.float64]

KEY_BITS: Final = 256
ROUNDS: Final = 20
_LARGE_EPSILON: Final = 700.0  # exp(709.8) is the largest that a double holds


class Release(Struct, frozen=True):
    """One release as data: what the ledger needs to account for it, and nothing more.

    The clip is not here, as the noise grows with it and it cancels from the privacy.

    Attributes:
        epsilon: privacy of one release for the batch, under replacement of one of its rows.
        batch: rows in a batch, drawn uniformly without replacement, afresh for each release.
        rows: rows in the data set.
        dimension: numbers released.
        mechanism: the law of the noise; "laplace" is :func:`isotropic_laplace`.

    Raises:
        ValueError: epsilon is not positive and finite, or not ``1 <= batch <= rows``, or the
            dimension is less than 1.
    """

    epsilon: float
    batch: int
    rows: int
    dimension: int
    mechanism: Literal["laplace"] = "laplace"

    def __post_init__(self) -> None:
        _positive("epsilon", self.epsilon)
        if not 1 <= self.batch <= self.rows:
            raise ValueError(f"a batch of {self.batch} out of {self.rows} rows")
        if self.dimension < 1:
            raise ValueError(f"dimension {self.dimension} is less than 1")
        if self.mechanism != "laplace":
            raise ValueError(f"no mechanism named {self.mechanism!r}")

    @property
    def noise_ratio(self) -> float:
        """Expected length of one release's noise, ``2 C d / (epsilon b)``, over the greatest that
        the mean of the clipped gradients can have, ``C``."""
        return 2 * self.dimension / (self.epsilon * self.batch)

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


def generator() -> np.random.Generator:
    """A fresh cryptographic generator: ChaCha with 20 rounds, keyed by the operating system.

    The 256 bits are the cipher's key itself (``key=``; ``seed=`` would be hashed first). This is
    the only place that asks the operating system for randomness.
    """
    return np.random.Generator(ChaCha(key=secrets.randbits(KEY_BITS), rounds=ROUNDS))


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
    rows = np.array(gradients, dtype=np.float64)
    if rows.ndim != 2:
        raise ValueError(f"gradients have {rows.ndim} dimensions instead of 2")
    peak = np.abs(rows).max(axis=1, initial=0.0)
    lost = ~np.isfinite(peak)
    rows[lost], peak[lost] = 0.0, 0.0
    # Scaled by a power of two, which is exact, so that no square over- or underflows.
    exponent = np.frexp(peak)[1] - 1
    scaled = np.ldexp(rows, -exponent[:, None])
    length = np.sqrt(np.square(scaled).sum(axis=1))
    target = bound * (1 - (rows.shape[1] + 8) * np.finfo(np.float64).eps)
    with np.errstate(over="ignore"):  # longer than the largest double is longer than the bound
        long = np.ldexp(length, exponent) > target
    rows[long] = scaled[long] * (target / length[long])[:, None]
    return rows


def isotropic_laplace(
    dimension: int, epsilon: float, clip: float, rng: np.random.Generator
) -> Floats:
    """Draw noise with density proportional to ``exp(-(epsilon / 2C) |z|)``, ``|z|`` the L2 norm.

    Args:
        dimension: d, at least 1.
        epsilon: privacy of one release under replacement of one row of the batch.
        clip: C, the bound on the norm of each row's gradient.
        rng: where the randomness comes from; :func:`generator` outside of tests.

    Returns:
        Shape (d,), in the gradients' own unit.

    Raises:
        ValueError: the dimension is less than 1, or epsilon or clip is not positive and finite.
    """
    _positive("epsilon", epsilon)
    _positive("clip", clip)
    if dimension < 1:
        raise ValueError(f"dimension {dimension} is less than 1")
    length = 0.0
    while length == 0.0:  # once in 2^50 draws in one dimension; zero has no direction
        direction = rng.standard_normal(dimension)
        length = float(np.linalg.norm(direction))
    noise: Floats = direction * (rng.gamma(dimension, 2 * clip / epsilon) / length)
    return noise


def release(
    gradients: npt.ArrayLike, clip: float, epsilon: float, rng: np.random.Generator
) -> Floats:
    """What may leave the client: ``(sum of the clipped rows + Z) / b``.

    Args:
        gradients: shape (b, d), one row per example of the batch; the divisor is this b, which
            the caller keeps the same for every release (:attr:`Release.batch`).
        clip: C, the bound on the norm of each row.
        epsilon: privacy of this one release under replacement of one row of the batch.
        rng: a generator that is used for this release only.

    Returns:
        Shape (d,), in the gradients' own unit.

    Raises:
        ValueError: no rows, or as :func:`clip_rows` and :func:`isotropic_laplace`.
    """
    clipped = clip_rows(gradients, clip)
    batch, dimension = clipped.shape
    if batch == 0:
        raise ValueError("an empty batch")
    total = clipped.sum(axis=0) + isotropic_laplace(dimension, epsilon, clip, rng)
    mean: Floats = total / batch
    return mean


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} {value} is not positive and finite")
