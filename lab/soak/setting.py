"""What a history happens in: the task, its validation set, and puzzles that nobody hashes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from accord.messages import SALT_BYTES
from accord.schema import Constraints, Field, Schema
from accord.task import Clients, Puzzles, Task, Training, Validation, commitment
from lab.soak.book import DIMENSION, MARKED_NORM

CURATOR: Final = Ed25519PrivateKey.from_private_bytes(b"simulated curator, not a secret!")
_ROWS: Final = 24


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a history happens in; the same setting and steps give the same history.

    Attributes:
        seed: of all chance in it.
        mode, aggregate, test, screen, evict, rate, minimum, maximum, silence, round_seconds,
        max_pause, deadline, max_updates, admission, update: of the task.
        ks: k of each honest client. hostile: how many others there are.
        remembered: what :data:`broker.registry.SESSIONS_PER_PLACE` is here: with fewer than the
            real 20, sessions are forgotten within a short history too.
    """

    seed: int
    mode: str = "asynchronous"
    aggregate: str = "mean"
    test: str = "none"
    screen: str = "none"
    evict: int = 3
    rate: float = 0.5
    minimum: int = 1
    maximum: int = 4
    silence: float = 30.0
    round_seconds: float = 10.0
    max_pause: float = 3600.0
    deadline: float = 86_400.0
    max_updates: int = 40
    admission: int = 1
    update: int = 1
    ks: tuple[int, ...] = (1, 2)
    hostile: int = 1
    remembered: int = 20

    @property
    def marked(self) -> bool:
        """Whether every update may leave a mark of its own."""
        return (self.test, self.screen, self.aggregate) == ("none", "none", "mean")


def _rows() -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(_ROWS) % 2.0
    rows = np.random.default_rng(5).normal(size=(_ROWS, DIMENSION)) / 4
    rows[:, 0] += 1.5 * (labels - 0.5)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype("<f4").astype(np.float64), labels


ROWS, LABELS = _rows()
_SALT: Final = bytes(SALT_BYTES)
_DIGEST: Final = commitment(_SALT, ROWS.astype("<f4").tobytes(), LABELS.astype("u1").tobytes())
_APART: Final = ROWS[LABELS == 1].mean(axis=0) - ROWS[LABELS == 0].mean(axis=0)
ALONG: Final[np.ndarray] = _APART / float(np.linalg.norm(_APART))
"""The direction, of length 1, in which the classes differ."""
_FIELDS: Final = (*(Field(name=f"x{i}", constraints=Constraints(minimum=-1, maximum=1))
                    for i in range(DIMENSION - 1)), Field(name="y", type="integer"))


def make_task(setting: Setting) -> Task:
    """The task of a setting."""
    s = setting
    return Task(
        title="A history",
        data=Schema(fields=_FIELDS, target="y"),
        training=Training(
            mode=s.mode, aggregate=s.aggregate, step=0.1, schedule="constant",  # type: ignore[arg-type]
            max_norm=MARKED_NORM if s.marked else 10.0, max_updates=s.max_updates,
            deadline=s.deadline, max_pause=s.max_pause, round_seconds=s.round_seconds),
        clients=Clients(minimum=s.minimum, maximum=s.maximum, silence=s.silence),
        puzzles=Puzzles(admission=s.admission, update=s.update),
        validation=Validation(
            test=s.test, screen=s.screen, evict=s.evict, rate=s.rate, digest=_DIGEST,  # type: ignore[arg-type]
            false_alarm=0.1, metric="loss", threshold=0.001),
    )


def opened(lock: bytes, zeros: int) -> bytes:
    """The solution of somebody who has worked for so many zeros."""
    return bytes([zeros]) + hashlib.sha256(lock + bytes([zeros])).digest()[:8]


def opens(lock: bytes, solution: bytes, difficulty: int) -> bool:
    """What stands in for :func:`accord.puzzle.verify`."""
    return len(solution) == 9 and solution[0] >= difficulty and solution == opened(
        lock, solution[0])
