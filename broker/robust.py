"""What a synchronous round makes of its updates, and how much of them may be anything. Pure.

All take updates (m, d), m >= 1, one of each client, and give one (d,) in which their order does
not matter. Where no validation set says who is wrong, a majority of well-meaning clients is all
that is left: from half on, nothing here holds.

What they cost. Clients whose rows differ want different updates, and the median and Krum follow
those in the middle: that is a bias, and more clients do not make it smaller. And honest clients
add noise, here isotropic Laplace, whose coordinates are nearly Gaussian in many dimensions: next
to the mean's, the variance of what is left of it is about pi/2 times larger in the median, 1.2
times in the trimmed mean, and m times in Krum's choice, which averages nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

TRIM: Final = 0.25
"""Share of the values of a coordinate that the trimmed mean leaves out, at each end."""


def mean(updates: np.ndarray) -> np.ndarray:
    """The mean: a single client can move it anywhere."""
    return np.asarray(updates.mean(axis=0))


def median(updates: np.ndarray) -> np.ndarray:
    """The median of each coordinate (Yin et al., "Byzantine-robust distributed learning", 2018).

    While fewer than half of the clients lie, each coordinate is within the range of the honest.
    """
    return np.asarray(np.median(updates, axis=0))


def trimmed_mean(updates: np.ndarray) -> np.ndarray:
    """The mean of each coordinate without a quarter of its values, rounded up, at each end (Yin
    et al., 2018); of fewer than five clients as many at each end as leave something.

    While at most so many lie as are cut at one end, each coordinate is within the range of the
    honest.
    """
    cut = trim(len(updates))
    return np.asarray(np.sort(updates, axis=0)[cut : len(updates) - cut].mean(axis=0))


def trim(clients: int) -> int:
    """How many values :func:`trimmed_mean` cuts at each end."""
    return min(math.ceil(TRIM * clients), (clients - 1) // 2)


def krum(updates: np.ndarray) -> np.ndarray:
    """The update that is nearest to its neighbours (Blanchard et al., "Machine learning with
    adversaries: Byzantine tolerant gradient descent", 2017).

    With f = floor((m - 3) / 2) liars at most among m clients, each update's score is the sum of
    its squared distances to its m - f - 2 nearest others, and the lowest score wins. Of several
    lowest scores (of two or three clients there always are) it is the mean of theirs.
    """
    m = len(updates)
    liars = max(0, (m - 3) // 2)
    neighbours = min(m - 1, max(1, m - liars - 2))
    if neighbours == 0:
        return np.array(updates[0])
    products = updates @ updates.T
    products = (products + products.T) / 2  # The same both ways, to the last bit.
    lengths = products.diagonal()
    distances = np.maximum(lengths[:, None] + lengths[None, :] - 2 * products, 0.0)
    np.fill_diagonal(distances, np.inf)
    scores = np.sort(distances, axis=1)[:, :neighbours].sum(axis=1)
    return mean(updates[scores == scores.min()])


AGGREGATES: Final[dict[str, Callable[[np.ndarray], np.ndarray]]] = {
    "mean": mean,
    "median": median,
    "trimmed-mean": trimmed_mean,
    "krum": krum,
}
"""By their names in a task (:attr:`accord.task.Training.aggregate`)."""
