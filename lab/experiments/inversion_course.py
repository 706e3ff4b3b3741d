"""A training with a victim in it, and what each seat sees of it.

A small loop of its own, in simulated time, instead of :mod:`lab.simulation`: who inverts needs
the order of updates and nothing of doors, puzzles and strikes. What counts is the real code: the
victim's and everybody's updates come from :class:`client.trainer.Trainer` (without noise:
:class:`lab.adversary.Noiseless`), weights travel as the float32 of the wire, and updates are added
by :class:`broker.aggregator.Aggregator`, as the brokerage does where a task has no validation.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from accord.messages import vector_to_wire
from accord.task import Task, step_size
from broker.aggregator import Aggregator
from client.accounting import epsilon_total
from client.noise import Release
from client.trainer import Made
from lab.adversary import Stepper, counter, honest
from lab.credit import Parts, Table, converged, deal
from lab.inversion import Seen, best_guess, distances, guesses, moments, shadow
from lab.setting import Config, make_task

SHARDS: Final = 10
"""The training rows are dealt to so many, whoever takes part: 2,100 of the credit data each."""
MOST_BYSTANDERS: Final = SHARDS - 2
TRAINING: Final[dict[str, Any]] = {"step": 0.1, "schedule": "constant", "clip": 1.0}
"""With a clip of 1 and rows of length 1 nothing is cut, and the noise is the paper's."""
DELTA: Final = 1e-6
"""For the ledger."""
_TRIP: Final = 0.1
"""Simulated seconds from the broker's answer to the update's arrival,"""
_JITTER: Final = 0.001
"""and an exponentially distributed time with this mean, for a puzzle."""

Victim = Literal["flipped", "ordinary", "unlike"]
Sends = Literal["zeros", "honest"]
Part = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One course, as plain data.

    Attributes:
        victim: ``flipped``: a shard with all labels turned round (the paper's); ``ordinary``: a
            shard as it is; ``unlike``: as many rows, half of which are ones.
        sends: what the attacker gives to the model.
        epsilon: of everybody's releases; None for no noise.
        bystanders: honest clients besides victim and attacker, at most :data:`MOST_BYSTANDERS`.
        delay: the broker answers after a time between 0 and so many seconds, by chance; None:
            victim and attacker take turns, as in the paper's figure 4 (without bystanders only).
        iterations: updates of the victim.
        batch: rows of a minibatch, everybody's.
        training: what of :class:`accord.task.Training` is not the default.
        seed: of all chance.
    """

    victim: Victim = "flipped"
    sends: Sends = "zeros"
    epsilon: float | None = None
    bystanders: int = 0
    delay: float | None = None
    iterations: int = 4000
    batch: int = 10
    training: Mapping[str, Any] = field(default_factory=lambda: dict(TRAINING))
    seed: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class Course:
    """What happened.

    Attributes:
        client: what the attacker sees as a client: the model at each of its own tickets.
        broker: what a curious broker sees: each update of the victim, on its own.
        weights: the model at the end, (d,).
    """

    client: Seen
    broker: Seen
    weights: np.ndarray


def task_of(table: Table, parts: Parts, training: Mapping[str, Any]) -> Task:
    """A task without validation: every update is applied as it is."""
    return make_task(table, Config(
        training=training, validation={"test": "none", "screen": "none", "evict": 0}), parts)


def shards(train: Part, victim: Victim, seed: int) -> list[Part]:
    """Everybody's rows (n, d) and labels (n,), disjoint: the victim's, the attacker's, and
    bystanders'."""
    rows, labels = train
    order = np.random.default_rng([seed, 5]).permutation(len(labels))
    if victim == "unlike":
        ones, zeros = order[labels[order] > 0.5], order[labels[order] < 0.5]
        half = min(len(order) // SHARDS // 2, len(ones) // 2)
        rest = np.random.default_rng([seed, 6]).permutation(
            np.concatenate([ones[half:], zeros[half:]]))
        held = [np.concatenate([ones[:half], zeros[:half]]), *np.array_split(rest, SHARDS - 1)]
    else:
        held = np.array_split(order, SHARDS)
    found = [(rows[mine], labels[mine]) for mine in held]
    if victim == "flipped":
        found[0] = found[0][0], 1.0 - found[0][1]
    return found


class _Zeros:
    """An attacker who gives nothing, so that all that happens is others' doing."""

    def update(self, weights: np.ndarray, rng: np.random.Generator) -> Made:
        return Made(np.zeros(len(weights), dtype=np.float32), 1)


class _World:
    """The model, and who works on it: 0 is the victim, 1 the attacker."""

    def __init__(self, task: Task, held: list[Part], setting: Setting) -> None:
        self.aggregator = Aggregator(task.dimension)
        self.steppers: list[Stepper] = [
            honest(task, *held[i], setting.batch, setting.epsilon, counter())
            for i in range(2 + setting.bystanders)]
        if setting.sends == "zeros":
            self.steppers[1] = _Zeros()
        self.rngs = [np.random.Generator(np.random.PCG64([setting.seed, 7, i]))
                     for i in range(len(self.steppers))]
        self.given: list[list[np.ndarray]] = [[], []]
        self.made: list[list[np.ndarray]] = [[], []]

    def work(self, i: int) -> np.ndarray:
        """Give a client the weights of now; its update for them."""
        weights = np.frombuffer(
            vector_to_wire(self.aggregator.weights), dtype="<f4").astype(np.float64)
        delta = self.steppers[i].update(weights, self.rngs[i]).delta.astype(np.float64)
        if i < 2:
            self.given[i].append(weights)
            self.made[i].append(delta)
        return delta


def _in_turns(setting: Setting, clients: int) -> Iterator[tuple[int, bool]]:
    """Events: who, and whether its update arrives (else it is given work)."""
    for _ in range(setting.iterations):
        for i in (1, 0):
            yield i, False
            yield i, True


def _at_once(setting: Setting, clients: int) -> Iterator[tuple[int, bool]]:
    """The same where nobody waits for anybody."""
    rng = np.random.default_rng([setting.seed, 8])
    delay = setting.delay or 0.0
    events = [(float(rng.uniform(0, _TRIP + delay)), i, False) for i in range(clients)]
    heapq.heapify(events)
    left = setting.iterations
    while left:
        now, i, arrives = heapq.heappop(events)
        yield i, arrives
        left -= arrives and i == 0
        after = rng.uniform(0, delay) if arrives else _TRIP + rng.exponential(_JITTER)
        heapq.heappush(events, (now + after, i, not arrives))


def run(task: Task, held: list[Part], setting: Setting) -> Course:
    """One training.

    Raises:
        ValueError: too many bystanders, or bystanders where two take turns.
    """
    if not 0 <= setting.bystanders <= (MOST_BYSTANDERS if setting.delay is not None else 0):
        raise ValueError(f"{setting.bystanders} bystanders")
    world = _World(task, held, setting)
    waiting: dict[int, np.ndarray] = {}
    course = _in_turns if setting.delay is None else _at_once
    for i, arrives in course(setting, len(world.steppers)):
        if arrives:
            world.aggregator.apply(waiting.pop(i))
        else:
            waiting[i] = world.work(i)
    if 1 not in waiting:
        world.work(1)  # a last look at the model; else its last ticket was that
    steps = np.array([step_size(task.training, t + 1) for t in range(len(world.made[0]) + 1)])
    return Course(_by_client(world, steps, setting), _by_broker(world, steps),
                  world.aggregator.weights)


def _by_client(world: _World, steps: np.ndarray, setting: Setting) -> Seen:
    """M_(t+2) - M_t less its own update: the paper's figure 4."""
    models, own = np.array(world.given[1]), np.array(world.made[1][:-1])
    after = models[:-1] + own
    # It does not know which of the victim's steps it sees, but that it is about as many as its own.
    mine = steps[np.minimum(np.arange(len(after)), len(steps) - 1)]
    return Seen(after, models[1:] - after, mine, float(setting.bystanders))


def _by_broker(world: _World, steps: np.ndarray) -> Seen:
    """The victim's connection alone."""
    updates = np.array(world.made[0])
    return Seen(np.array(world.given[0]), updates, steps[:len(updates)])


def ledger(
    epsilon: float | None, batch: int, held: int, dimension: int, releases: int
) -> float | None:
    """What so many releases cost whoever holds so many rows, epsilon at :data:`DELTA`."""
    if epsilon is None:
        return None
    return epsilon_total({Release(epsilon, batch, held, dimension): releases}, DELTA)


def judge(table: Table, setting: Setting) -> dict[str, Any]:
    """One course, all attacks on it, and the best guess without it.

    Returns:
        ``guess``: :func:`lab.inversion.best_guess`; ``others``: the same distances for a model of
        other people's data as it is (the paper's 95.4 % and, for an ordinary victim, its 4.4 %);
        ``constant``: for the better of the two constant answers; and for each seat and attack,
        named as ``client paper``, the distances. ``paper`` is :func:`lab.inversion.shadow`;
        ``moments`` begins with nothing, ``informed`` with what the guesser has. And ``ledger``:
        what all of it has cost the victim by its own ledger; None without noise.
    """
    parts = deal(table, 0, setting.seed)
    task = task_of(table, parts, setting.training)
    held = shards(parts.train, setting.victim, setting.seed)
    course = run(task, held, setting)
    rows = parts.test[0]
    truth, own = converged(*held[0]), converged(*held[1])
    known = guesses(own)
    told: dict[str, Any] = {
        "ledger": ledger(setting.epsilon, setting.batch, len(held[0][1]), task.dimension,
                         setting.iterations),
        "guess": best_guess(known, truth, rows),
        "constant": best_guess(known[:2], truth, rows),
        "others": distances(own, truth, rows)}
    # Who guesses well knows that labels are turned round; so does the informed attacker.
    start = -own if setting.victim == "flipped" else own
    for seat, seen in (("client", course.client), ("broker", course.broker)):
        models = {"paper": shadow(seen),
                  "moments": moments(seen, *held[1], np.zeros_like(own)),
                  "informed": moments(seen, *held[1], start)}
        for name, model in models.items():
            told[f"{seat} {name}"] = distances(model, truth, rows)
    return told
