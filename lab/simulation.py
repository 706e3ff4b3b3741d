"""A training in simulated time: the real brokerage, real honest clients, and attackers.

Events instead of a clock: each contact with the broker takes ``contact`` seconds (a round trip
through Tor), each puzzle takes an exponentially distributed time with the mean that its
difficulty and the machine's hash rate give, and everything else takes none. Nothing is hashed:
the brokerage is told to believe every solution. Whatever it decides otherwise is the code that
runs behind an onion address, and whatever an honest client sends comes from
:class:`client.trainer.Trainer` (without noise: :class:`lab.adversary.Noiseless`).

One seed gives one course of events, to the last bit on one machine. Clients draw from generators
of their own: the honest ones have the same rows and the same luck whether attackers come or not.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from accord import puzzle
from accord.messages import (
    Join,
    Leave,
    Pull,
    Push,
    Refused,
    Turn,
    Wait,
    Work,
    vector_from_wire,
    vector_to_wire,
)
from accord.problems import EVICTED, FULL, NOT_SOLVED, STALE_TICKET, PeerProblem
from accord.task import sign
from broker.brokerage import Brokerage
from lab.adversary import Attacker, Stepper
from lab.credit import Table, deal
from lab.setting import Config, auc, error_of, make_task, recruit

_CURATOR: Final = Ed25519PrivateKey.from_private_bytes(b"simulated curator, not a secret!")
_ARRIVAL: Final = 1.0
"""Clients come to the door within so many seconds, in a chance order."""

_AGAIN: Final = 5.0
"""Seconds until somebody whom the door did not let in comes back."""


@dataclass(slots=True, kw_only=True)
class Result:
    """What came of a simulation. Errors and losses are of the honest clients' rows, which are the
    training set, unless they say otherwise.

    Attributes:
        curve: (simulated seconds, error, mean loss), from the start on.
        error, loss, auc: of the weights at the end.
        test_error: of the same weights, on rows that nobody had.
        published_error: of the weights that would be published: those with the lowest loss on the
            validation rows.
        honest, attackers: how many clients of each kind there were.
        honest_struck: how many honest clients were ever given a strike.
        honest_evicted: how many were put out.
        attackers_struck: how many attackers were ever given one.
        struck_after: for each of those, after how many accepted updates, all its sessions
            together.
        sessions: how many were opened.
        honest_updates, attacker_updates: how many were acknowledged.
        applied: how many changed the model: fewer, where some are only judged.
        refused: how many messages were refused.
        broker_seconds: processor time in the brokerage, without hashing and disk.
        seconds: processor time of it all.
    """

    curve: list[tuple[float, float, float]]
    error: float
    loss: float
    auc: float
    test_error: float
    published_error: float
    honest: int
    attackers: int
    honest_struck: int
    honest_evicted: int
    attackers_struck: int
    struck_after: list[int]
    sessions: int
    honest_updates: int
    attacker_updates: int
    applied: int
    refused: int
    broker_seconds: float
    seconds: float


class Machine:
    """What solves puzzles, one after another, at a hash rate."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._busy_until = 0.0

    def solve(self, now: float, difficulty: int, rng: np.random.Generator) -> float:
        """When a puzzle that is begun now is solved."""
        mean = puzzle.expected_hashes(difficulty) / self._rate
        self._busy_until = max(now, self._busy_until) + rng.exponential(mean)
        return self._busy_until


@dataclass(slots=True, eq=False)
class _Client:
    stepper: Stepper
    attacker: Attacker | None
    machine: Machine
    rng: np.random.Generator
    token: bytes = b""
    strikes: int = 0
    updates: int = 0
    struck_after: int | None = None
    evicted: bool = False


Message = Join | Pull | Push


class Simulation:
    """One course of events.

    Args:
        table: the data.
        config: what is simulated.
    """

    def __init__(self, table: Table, config: Config) -> None:
        self.config = config
        self.parts = deal(table, config.validation_rows, config.seed)
        self.task = make_task(table, config, self.parts)
        self.brokerage = Brokerage(
            b"s" * 32, random.Random(config.seed).randbytes,  # noqa: S311 - a simulation
            verify=lambda lock, solution, difficulty: True)
        self.brokerage.accept(sign(self.task, _CURATOR), *self.parts.validation, 0.0)
        self._events: list[tuple[float, int, _Client, Message | None]] = []
        self._order = itertools.count()
        self._parked: dict[_Client, Message] = {}
        self._seen = 0
        self._weights = np.zeros(self.task.dimension)
        self._best = self._weights
        self._sessions = self._refused = self._applied = 0
        self._broker_seconds = 0.0
        self._make_clients()

    def _make_clients(self) -> None:
        config = self.config
        recruits, self.train = recruit(self.task, self.parts, config)
        shared = Machine(config.hash_rate)
        self.clients: list[_Client] = []
        for each in recruits:
            alone = each.attacker is None or not each.attacker.shared_machine
            machine = Machine(config.hash_rate) if alone else shared
            client = _Client(each.stepper, each.attacker, machine, each.rng)
            self.clients.append(client)
            self._at(each.rng.uniform(0, _ARRIVAL), client, None)

    @property
    def weights(self) -> np.ndarray:
        """The model at the end, float64 (d,), after :meth:`run`."""
        return self._weights

    # -- events --------------------------------------------------------------------------------

    def _at(self, when: float, client: _Client, message: Message | None) -> None:
        if when <= self.config.seconds:
            heapq.heappush(self._events, (when, next(self._order), client, message))

    def run(self) -> Result:
        """All of it."""
        began = time.thread_time()
        config = self.config
        curve: list[tuple[float, float, float]] = []
        point = 0.0
        while self._events:
            now, _, client, message = heapq.heappop(self._events)
            while point <= now:
                curve.append(self._measure(point))
                point += config.every
            self._deliver(client, message, now)
            self._wake(now)
        while point <= config.seconds:
            curve.append(self._measure(point))
            point += config.every
        _, error, loss = self._measure(config.seconds)
        attackers = [c for c in self.clients if c.attacker is not None]
        good = [c for c in self.clients if c.attacker is None]
        after = [c.struck_after for c in attackers if c.struck_after is not None]
        return Result(
            curve=curve,
            error=error,
            loss=loss,
            auc=auc(self.train[0] @ self._weights, self.train[1]),
            test_error=error_of(self._weights, self.parts.test),
            published_error=error_of(self._best, self.train),
            honest=len(good),
            attackers=len(attackers),
            honest_struck=sum(c.struck_after is not None for c in good),
            honest_evicted=sum(c.evicted for c in good),
            attackers_struck=len(after),
            struck_after=after,
            sessions=self._sessions,
            honest_updates=sum(c.updates for c in good),
            attacker_updates=sum(c.updates for c in attackers),
            applied=self._applied,
            refused=self._refused,
            broker_seconds=self._broker_seconds,
            seconds=time.thread_time() - began,
        )

    def _measure(self, now: float) -> tuple[float, float, float]:
        model = self.brokerage.take_changes(now).model
        if model is not None:
            self._weights, self._best = model.weights, model.best_weights
            self._applied = model.updates
        rows, labels = self.train
        margins = rows @ self._weights
        ones = labels > 0.5
        error = float(np.mean((margins > 0) != ones))
        loss = float(np.logaddexp(0.0, np.where(ones, -margins, margins)).mean())
        return now, error, loss

    def _deliver(self, client: _Client, message: Message | None, now: float) -> None:
        """A message arrives at the broker (None: the client comes to the door)."""
        contact = self.config.contact
        began = time.thread_time()
        try:
            if message is None:
                door = self.brokerage.puzzle(now)
            elif isinstance(message, Join):
                client.token = self.brokerage.join(message, now).token
            else:
                turn = self.brokerage.receive(client.token, message, now)
        except PeerProblem as problem:
            self._refused += 1
            if problem.kind in (NOT_SOLVED, FULL):
                # The lock is too old, or nobody has left yet: back to the door, a bit later.
                self._at(now + _AGAIN, client, None)
            return
        finally:
            self._broker_seconds += time.thread_time() - began
        if message is None:
            solved = client.machine.solve(now, door.difficulty, client.rng)
            self._at(solved + contact, client, Join(door.lock, b"", 1))
        elif isinstance(message, Join):
            self._sessions += 1
            client.strikes = 0
            self._at(now + contact, client, Pull())
        else:
            self._answered(client, message, turn, now)

    def _wake(self, now: float) -> None:
        """Whoever waits is answered again whenever there is news, as over its open connection."""
        while self._parked and self.brokerage.stirred != self._seen:
            self._seen = self.brokerage.stirred
            for client, message in list(self._parked.items()):
                assert not isinstance(message, Join)
                turn = self.brokerage.receive(client.token, message, now, repeated=True)
                if not isinstance(turn.next, Wait):
                    del self._parked[client]
                    self._answered(client, message, turn, now)

    def _answered(self, client: _Client, message: Message, turn: Turn, now: float) -> None:
        if isinstance(message, Push) and turn.receipt == message.ticket:
            client.updates += 1
        if turn.strikes > client.strikes:
            client.strikes = turn.strikes
            if client.struck_after is None:
                client.struck_after = client.updates
        told = turn.next
        if isinstance(told, Refused):
            self._told_no(client, told.problem(), now)
        elif client.attacker is not None and client.attacker.leaves(client.strikes):
            self._rejoin(client, now)
        elif isinstance(told, Work):
            self._work(client, told, now)
        elif isinstance(told, Wait):
            self._parked[client] = message

    def _told_no(self, client: _Client, problem: PeerProblem, now: float) -> None:
        self._refused += 1
        if problem.kind is EVICTED:
            client.evicted = True
            if client.struck_after is None:
                client.struck_after = client.updates
            if client.attacker is not None and client.attacker.leaves(max(1, client.strikes)):
                self._rejoin(client, now)
            return
        if problem.kind is STALE_TICKET or client.attacker is not None:
            self._at(now + self.config.contact, client, Pull())
            return
        raise AssertionError(f"an honest client was told: {problem.sentence}")

    def _rejoin(self, client: _Client, now: float) -> None:
        assert client.attacker is not None
        client.attacker.anew()
        if not client.evicted:
            self.brokerage.receive(client.token, Leave(), now)
        client.evicted = False
        self._at(now + self.config.contact, client, None)

    def _work(self, client: _Client, work: Work, now: float) -> None:
        if self.config.most_updates is not None and client.updates >= self.config.most_updates:
            return
        when = client.machine.solve(now, work.difficulty, client.rng) + self.config.contact
        if when > self.config.seconds:
            return  # nobody will see it
        precision = self.task.training.precision
        weights = vector_from_wire(work.weights, self.task.dimension, precision)
        assert weights is not None, "the model is not finite"
        made = client.stepper.update(weights, client.rng)
        self._at(when, client,
                 Push(work.ticket, b"", vector_to_wire(made.delta, precision), made.steps))


def simulate(table: Table, config: Config) -> Result:
    """Run one simulation."""
    return Simulation(table, config).run()


def as_data(result: Result) -> dict[str, Any]:
    """A result as plain data that JSON can hold."""
    plain: dict[str, Any] = msgspec.to_builtins(result)
    return plain
