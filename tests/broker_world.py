"""A small task, its data, and a client that does as it is told: for tests of the broker."""

from __future__ import annotations

import itertools
import random

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from accord import puzzle
from accord.messages import (
    SALT_BYTES,
    Join,
    Leave,
    Pull,
    Push,
    SignedTask,
    Turn,
    Work,
    vector_to_wire,
)
from accord.schema import Constraints, Field, Schema
from accord.task import Clients, Puzzles, Task, Training, Validation, commitment, sign
from broker.brokerage import Brokerage
from broker.verdict import Update

CURATOR = Ed25519PrivateKey.from_private_bytes(b"c" * 32)
DIMENSION = 4
SALT = b"z" * SALT_BYTES


def make_task(**parts: object) -> Task:
    """Three features in -1 ... 1; easy puzzles; no judging unless asked for; committed to
    :func:`make_data` unless it needs no validation set."""
    fields = tuple(
        Field(name=f"x{i}", constraints=Constraints(minimum=-1, maximum=1)) for i in range(3))
    defaults: dict[str, object] = {
        "title": "A test",
        "data": Schema(fields=(*fields, Field(name="y", type="integer")), target="y"),
        "training": Training(max_updates=1000, max_norm=1.0, step=0.1),
        "clients": Clients(minimum=1, maximum=10, silence=30.0),
        "puzzles": Puzzles(admission=1, update=1),
        "validation": Validation(test="none", screen="none", digest=DIGEST),
    }
    return Task(**(defaults | parts))  # type: ignore[arg-type]


def rounds(**rules: object) -> Validation:
    """Snapshot rounds, without eviction."""
    defaults = {"test": "rounds", "screen": "none", "evict": 0, "digest": DIGEST}
    return Validation(**(defaults | rules))  # type: ignore[arg-type]


def make_data(n: int = 40, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Rows of norm 1 whose label is the sign of the first feature."""
    rows = np.random.default_rng(seed).normal(size=(n, DIMENSION))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows.astype("<f4").astype(np.float64)
    return rows, (rows[:, 0] > 0).astype(np.float64)


def make_rows(seed: int, n: int, d: int, gap: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of norm 1, of two classes in turn, whose centres are so far apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2.0
    rows = rng.normal(size=(n, d)) / np.sqrt(d)
    rows[:, 0] += gap * (labels - 0.5)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), labels


def wire(rows: np.ndarray, labels: np.ndarray) -> tuple[bytes, bytes]:
    """A validation set as it travels."""
    return rows.astype("<f4").tobytes(), labels.astype("u1").tobytes()


def make_update(
    name: bytes, sent: np.ndarray, delta: np.ndarray, gradient: np.ndarray | None = None,
) -> Update:
    """An update of which the screen has cut nothing."""
    return Update(name, sent, delta, delta, delta if gradient is None else gradient)


DIGEST = commitment(SALT, *wire(*make_data()))


def make_brokerage(
    task: Task | None = None, now: float = 0.0, seed: int = 0,
    data: tuple[np.ndarray, np.ndarray] | None = None,
) -> Brokerage:
    """A brokerage that gathers; its randomness is seeded."""
    brokerage = Brokerage(b"s" * 32, random.Random(seed).randbytes)
    brokerage.accept(signed(task or make_task()), *(data or make_data()), now)
    return brokerage


def signed(task: Task) -> SignedTask:
    """The task as its curator signs it."""
    return sign(task, CURATOR)


def solve(lock: bytes, difficulty: int) -> bytes:
    """A solution, however long it takes."""
    for start in itertools.count(0, 4096):
        if (found := puzzle.search(lock, difficulty, start, 4096)) is not None:
            return found
    raise AssertionError


class Player:
    """A client of a brokerage, without any network."""

    def __init__(self, brokerage: Brokerage, min_clients: int = 1, now: float = 0.0) -> None:
        self.brokerage = brokerage
        door = brokerage.puzzle(now)
        self.join = Join(door.lock, solve(door.lock, door.difficulty), min_clients)
        self.token = brokerage.join(self.join, now).token

    def pull(self, now: float) -> Turn:
        return self.brokerage.receive(self.token, Pull(), now)

    def work(self, now: float) -> Work:
        turn = self.pull(now)
        assert isinstance(turn.next, Work), turn
        return turn.next

    def answer(self, work: Work, delta: np.ndarray | None = None) -> Push:
        delta = np.full(DIMENSION, 0.01) if delta is None else delta
        return Push(work.ticket, solve(work.lock, work.difficulty), vector_to_wire(delta))

    def push(self, push: Push, now: float) -> Turn:
        return self.brokerage.receive(self.token, push, now)

    def step(self, now: float, delta: np.ndarray | None = None) -> Turn:
        return self.push(self.answer(self.work(now), delta), now)

    def leave(self, now: float) -> Turn:
        return self.brokerage.receive(self.token, Leave(), now)
