"""What experiments count with."""

from __future__ import annotations

import math


def upper_bound(hits: int, trials: int, doubt: float = 0.05) -> float:
    """The one-sided upper bound of Clopper and Pearson (Biometrika 26, 1934) on a chance.

    Args:
        hits: how often it came true, of so many independent ``trials``.
        trials: at least 1.
        doubt: the chance that the bound does not hold, at most.

    Returns:
        The chance with which so few hits, or fewer, would have just the chance ``doubt``.

    Raises:
        ValueError: not ``0 <= hits <= trials``, or no trials.
    """
    if not 0 <= hits <= trials or trials < 1:
        raise ValueError(f"{hits} of {trials}")
    if hits == trials:
        return 1.0
    low, high = hits / trials, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        if at_most(hits, trials, middle) > doubt:
            low = middle
        else:
            high = middle
    return high


def at_most(hits: int, trials: int, chance: float) -> float:
    """The chance of ``hits`` or fewer, of so many independent trials of this chance."""
    if chance <= 0.0:
        return 1.0
    if chance >= 1.0:
        return 1.0 if hits >= trials else 0.0
    yes, no = math.log(chance), math.log1p(-chance)
    whole = math.lgamma(trials + 1)
    return min(1.0, math.fsum(
        math.exp(whole - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
                 + k * yes + (trials - k) * no)
        for k in range(hits + 1)))


def mean(values: list[float]) -> float:
    """The mean; NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan
