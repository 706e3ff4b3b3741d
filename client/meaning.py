"""What a privacy total means, for somebody who has never heard of epsilon, and what to do."""

from __future__ import annotations

import math
from typing import Final

from accord.words import bound

STRENGTHS: Final[tuple[tuple[float, str], ...]] = (
    (1.0, "strong"), (3.0, "fair"), (8.0, "weak"), (math.inf, "next to none"))
"""Up to which epsilon in all a protection is called what. A habit of the field and no theorem:
what is behind the words is told beside them."""


def strength(epsilon: float) -> str:
    """One word for a total."""
    return next(word for most, word in STRENGTHS if epsilon <= most)


def percent(share: float) -> str:
    """A share that is rounded up, as it is an upper bound: 57 %, 99.2 %, 100 %."""
    if share > 0.99:
        return f"{math.ceil(share * 1000) / 10:g} %"
    return f"{math.ceil(share * 100)} %"


def in_words(
    epsilon: float, delta: float, guess: float, sure: float
) -> list[str]:
    """What a total promises, a paragraph each.

    Args:
        epsilon, delta: the total.
        guess: see :func:`client.accounting.best_guess`.
        sure: see :func:`client.accounting.certainty`.
    """
    told = [
        f"Protection of each row: {strength(epsilon)}. Somebody who knows all your other "
        "rows, sees all that is sent, and has to say which of two rows is the one that you have, "
        f"is right at most {percent(guess)} of the time. A coin is right 50 % of the time.",
        f"Now and then what is sent tells more than usual; but nobody who holds it 50:50 can "
        f"become more than {percent(sure)} sure, except with a chance of one in "
        f"{1 / delta:,.0f}. (Epsilon {bound(epsilon)} at delta {delta:g}.)",
    ]
    if epsilon > STRENGTHS[1][0]:
        told.append("For a stronger protection choose a smaller --budget, or join with more "
                    "rows: the same model then costs each of them less.")
    told.append("What is protected is a row. Give one row for each person: several of one person "
                "tell more of that person.")
    return told
