"""What must outlive a crash: the records that the brokerage gives and the store keeps. Pure.

State, never a history of anybody's updates. Printed by mistake, they tell nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from accord.messages import Phase


@dataclass(frozen=True, slots=True, repr=False)
class ModelRow:
    """What must outlive a crash, of the model: its state, never a history of updates.

    ``seconds`` is how long ago training first began (None: not yet). ``judged``, ``struck`` and
    ``strikes`` count sessions, sessions and strikes (:class:`broker.registry.Registry`); ``heat``
    is the door's, when this was written; ``judging`` is what the test of updates keeps of its own;
    ``trained`` is for how many seconds work could be done.
    """

    phase: Phase
    weights: np.ndarray
    updates: int
    best_weights: np.ndarray
    best_loss: float | None
    best_error: float | None
    improved: int
    judged: int
    struck: int
    strikes: int
    heat: float
    judging: bytes
    trained: float
    seconds: float | None
    ended: str


@dataclass(frozen=True, slots=True, repr=False)
class SessionRow:
    """What must outlive a crash, of a session. ``spent`` is the ticket acknowledged last,
    ``evidence`` what the test of updates has on it, ``worked`` when it worked last, in seconds of
    training."""

    name: bytes
    min_clients: int
    updates: int
    strikes: int
    worked: float
    evidence: bytes
    spent: bytes


@dataclass(frozen=True, slots=True)
class Changes:
    """What has changed since the last time it was asked."""

    model: ModelRow | None
    sessions: list[SessionRow]
    forgotten: list[bytes] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.model is not None or bool(self.sessions) or bool(self.forgotten)
