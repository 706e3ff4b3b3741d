"""Who trains what, in a simulation or in real time: the setting, made from one configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from accord.messages import SALT_BYTES
from accord.objective import OBJECTIVES
from accord.task import Clients, Puzzles, Task, Training, Validation, commitment
from lab.adversary import Attacker, Band, Means, Stepper, counter, honest, make_attacker
from lab.credit import Parts, Table

_FOREVER: Final = 1e8
"""Seconds: no deadline and no silence ends a simulation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One simulation, as plain data.

    Attributes:
        clients: of both kinds.
        attackers: the share of them that attacks, rounded to whole clients.
        attack: a key of :data:`lab.adversary.ATTACKS`; ``none``: attackers stay away, so that the
            honest clients are alone.
        parameter: the attack's own number; None for its default.
        epsilon: of one step's noise; None for no noise.
        batch: rows of a minibatch.
        local_steps: private steps that make an update, of everybody. They take no time: it is the
            way and the puzzles that take it.
        seconds: simulated, until all is over.
        validation: what of :class:`accord.task.Validation` is not the default.
        training: the same of :class:`accord.task.Training`.
        split: who holds what: ``iid``; ``one-class``: rows of one answer only; ``tenth``: rows
            of one stretch of the table's order (with ten clients: a tenth).
        validation_rows: of the curator.
        seed: of all chance.
        most_updates: each client stops after so many; None for no end.
        contact: seconds.
        hash_rate: hashes a second of one machine.
        admission, update: the puzzles' trailing zeros, before any strike.
        every: simulated seconds between two points of the curve.
    """

    clients: int = 8
    attackers: float = 0.0
    attack: str = "none"
    parameter: float | None = None
    epsilon: float | None = None
    batch: int = 50
    seconds: float = 60.0
    validation: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    split: Literal["iid", "one-class", "tenth"] = "iid"
    validation_rows: int = 100
    seed: int = 0
    most_updates: int | None = None
    contact: float = 0.1
    hash_rate: float = 8e6
    admission: int = 4
    update: int = 2
    every: float = 1.0
    local_steps: int = 1

    @property
    def attacking(self) -> int:
        """How many clients are attackers."""
        return round(self.attackers * self.clients)


def make_task(table: Table, config: Config, parts: Parts) -> Task:
    """The task of a simulation."""
    rows, labels = parts.validation
    digest = commitment(bytes(SALT_BYTES), rows.astype("<f4").tobytes(),
                        labels.astype("u1").tobytes())
    # Never reached, as a client makes one update in each contact at most. But it must not be far
    # more than what comes: the sequential test divides its false alarms among so many.
    most = math.ceil(config.clients * config.seconds / config.contact) + config.clients
    training = {"step": 1.0, "schedule": "1/sqrt(t)", "clip": 0.5, "max_updates": most,
                "deadline": _FOREVER, "max_pause": _FOREVER, "local_steps": config.local_steps,
                **config.training}
    return Task(
        title="An experiment",
        data=table.schema,
        training=Training(**training),
        # Whoever joins anew has left before; but sybils' doors may be slow to be noticed.
        clients=Clients(minimum=1, maximum=2 * config.clients, silence=_FOREVER),
        puzzles=Puzzles(admission=config.admission, update=config.update),
        validation=Validation(**config.validation, digest=digest),
    )


def shares(parts: Parts, config: Config) -> list[np.ndarray]:
    """Which training rows each client holds: indices, one array for each client, disjoint.

    Attackers hold rows as anybody does. Which clients they are does not depend on what is held:
    the last ones, except that classes and stretches are dealt in a chance order.
    """
    labels = parts.train[1]
    rng = np.random.default_rng([config.seed, 2])
    order = rng.permutation(len(labels))
    if config.split == "iid":
        return np.array_split(order, config.clients)
    if config.split == "tenth":
        held = np.array_split(
            order[np.argsort(parts.order[order], kind="stable")], config.clients)
    else:
        ones = max(1, round(config.clients * float(labels.mean())))
        held = [*np.array_split(order[labels[order] > 0.5], ones),
                *np.array_split(order[labels[order] < 0.5], config.clients - ones)]
    return [held[i] for i in rng.permutation(config.clients)]


@dataclass(frozen=True, slots=True)
class Recruit:
    """A client before it comes to the door.

    Attributes:
        stepper: what makes its updates.
        attacker: the same, where it is one.
        rng: all its chance.
    """

    stepper: Stepper
    attacker: Attacker | None
    rng: np.random.Generator


def recruit(
    task: Task, parts: Parts, config: Config
) -> tuple[list[Recruit], tuple[np.ndarray, np.ndarray]]:
    """The clients of a configuration, and the honest ones' rows (n, d) and labels (n,)."""
    held = shares(parts, config)
    good = config.clients - config.attacking
    band = Band(good, config.attacking)
    rows, labels = parts.train
    found = []
    for i, mine in enumerate(held):
        rng = np.random.Generator(np.random.PCG64([config.seed, 3, i]))
        if i < good:
            stepper = honest(task, rows[mine], labels[mine], config.batch, config.epsilon,
                             counter(), config.local_steps)
            found.append(Recruit(stepper, None, rng))
        elif config.attack != "none":
            band.share(rows[mine], labels[mine])
            means = Means(
                task, rows[mine], labels[mine], config.batch, config.epsilon, band, i,
                config.local_steps)
            attacker = make_attacker(config.attack, means, config.parameter)
            found.append(Recruit(attacker, attacker, rng))
    mine = np.concatenate(held[:good])
    return found, (rows[mine], labels[mine])


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a 1 is scored above a 0; ties count half."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    ones = labels > 0.5
    n1, n0 = int(ones.sum()), int((~ones).sum())
    if not n1 or not n0:
        return 0.5
    return float((ranks[ones].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def error_of(weights: np.ndarray, part: tuple[np.ndarray, np.ndarray]) -> float:
    """The share of rows that these weights misclassify."""
    return float(OBJECTIVES["logistic"].error(weights[None, :], *part)[0])
