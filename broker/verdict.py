"""What is judged, and what comes of it. Pure; apart from the tests, so that all can import it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True, repr=False)
class Update:
    """One accepted update, as the tests see it; vectors are float64 (d,).

    Attributes:
        name: whose.
        sent: the weights that its ticket held.
        delta: the update as it came.
        step: what the screen lets through of it; None: nothing.
        gradient: which way, and how far, it says that the loss falls: the update over the length
            of its steps, no longer than the task's clip.
        steps: how many it is the sum of; its gradient is the mean of as many.
    """

    name: bytes
    sent: np.ndarray
    delta: np.ndarray
    step: np.ndarray | None
    gradient: np.ndarray
    steps: int = 1


@dataclass(frozen=True, slots=True, repr=False)
class Verdict:
    """What becomes of an accepted update.

    Attributes:
        apply: what is added to the model, float64 (d,); None for nothing. The update is
            acknowledged all the same.
        mend: what is added to the model besides, to undo what others, or this one earlier, did;
            float64 (d,), or None.
        struck: sessions that earn a strike now; not only the one whose update it was.
        touched: other sessions whose evidence has changed, and must be written.
    """

    apply: np.ndarray | None
    mend: np.ndarray | None = None
    struck: list[bytes] = field(default_factory=list)
    touched: list[bytes] = field(default_factory=list)
