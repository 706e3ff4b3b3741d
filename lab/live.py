"""The same as :mod:`lab.simulation` in real time: sockets, puzzles, a database, no Tor.

The broker is :class:`broker.model_app.ModelApp` with a real store, on loopback; clients speak the
real protocol through :class:`client.session.Conversation` and solve real puzzles. Attackers are
those of :mod:`lab.adversary`. It is here to say whether simulated time can be believed, and runs
for as long as it simulates: so a few cells only.

What differs from the simulation: all clients and the broker share this process, so their puzzles
take each other's time; and what happens first is decided by the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from accord import puzzle
from accord.circuit import Circuit, Route, fresh_identity
from accord.messages import (
    AdmissionPuzzle,
    Join,
    Leave,
    Turn,
    Welcome,
    decode,
    encode,
    turn_limit,
)
from accord.onion import onion_from_seed
from accord.problems import AWAY, EVICTED, Problem
from accord.task import Task, sign
from broker.brokerage import Brokerage
from broker.doorman import Door
from broker.model_app import ModelApp
from broker.store import Store
from client.session import Conversation, Over, Pace, Step
from lab.credit import Table, deal
from lab.setting import Config, Recruit, error_of, make_task, recruit
from lab.simulation import simulate

COURSES: Final = 5
"""Simulations, of seeds that follow each other, that one training in real time is held against."""
TOLERANCE: Final = 0.01
"""The final training error in real time is at most a point outside of the range of theirs: what
happens first is decided by the machine, so it is one more course of events, and not theirs."""
_STRETCH: Final = 1 << 12
"""Tries of a puzzle between two looks at the others: a few milliseconds."""
_NO_LIMIT: Final = 64
_PATIENCE: Final = 30.0


@dataclass(slots=True)
class Played:
    """What became of one client."""

    updates: int = 0
    struck_after: int | None = None
    evicted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Lived:
    """What came of a training in real time; see :class:`lab.simulation.Result`."""

    error: float
    honest_struck: int
    attackers_struck: int
    honest_updates: int
    attacker_updates: int


def hash_rate(seconds: float = 0.2) -> float:
    """Hashes a second of one thread of this machine, tried for so long."""
    began = time.perf_counter()
    tries = 0
    while (spent := time.perf_counter() - began) < seconds:
        # So many zeros are never found.
        puzzle.search(b"rate", _NO_LIMIT, tries, _STRETCH)
        tries += _STRETCH
    return tries / spent


@contextlib.asynccontextmanager
async def serve(brokerage: Brokerage, store: Store) -> AsyncIterator[Route]:
    """Serve a model on loopback while the body runs."""
    app = ModelApp(brokerage, store, lambda: b"")
    listener = socket.create_server(("127.0.0.1", 0))
    host, port = listener.getsockname()
    door = Door(app.app, listener)
    await door.open()
    life = asyncio.create_task(app.run())
    try:
        yield Route(socks=None, direct=(host, port))
    finally:
        await door.close()
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)


async def live(table: Table, config: Config) -> Lived:
    """Train for ``config.seconds`` of real time.

    Args:
        table: the data.
        config: as for a simulation; ``hash_rate`` and ``every`` are not looked at.
    """
    parts = deal(table, config.validation_rows, config.seed)
    task = make_task(table, config, parts)
    seed = secrets.token_bytes(32)
    brokerage = Brokerage(secrets.token_bytes(32), secrets.token_bytes)
    brokerage.accept(sign(task, Ed25519PrivateKey.generate()), *parts.validation,
                     asyncio.get_running_loop().time())
    recruits, train = recruit(task, parts, config)
    played = [Played() for _ in recruits]
    with tempfile.TemporaryDirectory() as directory:
        store = Store(Path(directory) / "model.db")
        try:
            async with serve(brokerage, store) as way:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(config.seconds), asyncio.TaskGroup() as group:
                        for each, mine in zip(recruits, played, strict=True):
                            client = _Client(way, onion_from_seed(seed), task, config, each, mine)
                            group.create_task(client.run())
            state = store.state()
        finally:
            store.close()
    weights = state[0].weights if state is not None else np.zeros(task.dimension)
    pairs = list(zip(recruits, played, strict=True))
    good = [p for r, p in pairs if r.attacker is None]
    bad = [p for r, p in pairs if r.attacker is not None]
    return Lived(
        error=error_of(weights, train),
        honest_struck=sum(p.struck_after is not None for p in good),
        attackers_struck=sum(p.struck_after is not None for p in bad),
        honest_updates=sum(p.updates for p in good),
        attacker_updates=sum(p.updates for p in bad),
    )


class _Client:
    """One client in real time."""

    def __init__(self, way: Route, onion: str, task: Task, config: Config, recruit: Recruit,
                 played: Played) -> None:
        self._way, self._onion, self._task, self._config = way, onion, task, config
        self._recruit, self._played = recruit, played

    async def run(self) -> None:
        """Join and train; again, for an attacker who wants to be somebody else."""
        while True:
            async with Circuit(self._way, self._onion, fresh_identity()) as circuit:
                try:
                    if not await self._session(circuit):
                        return
                except Problem as problem:
                    if problem.kind is EVICTED:
                        self._played.evicted = True
                        self._struck()
                    elif problem.kind is not AWAY:
                        raise
                    attacker = self._recruit.attacker
                    if attacker is None or not attacker.leaves(1):
                        return
                    attacker.anew()

    def _struck(self) -> None:
        if self._played.struck_after is None:
            self._played.struck_after = self._played.updates

    async def _session(self, circuit: Circuit) -> bool:
        """One session, whole; True when it was left to join again."""
        door = decode(await circuit.get("/puzzle"), AdmissionPuzzle)
        solution = await _search(door.lock, door.difficulty)
        raw = await circuit.post("/join", encode(Join(door.lock, solution, 1)))
        limit = turn_limit(self._task.dimension)
        talk = Conversation(self._onion, decode(raw, Welcome).token, self._task.dimension,
                            _NO_LIMIT, lambda: True, Pace(), self._task.clients.silence,
                            precision=self._task.training.precision)
        now = asyncio.get_running_loop().time
        socket = await circuit.websocket("/train", limit)
        try:
            await socket.send(encode(talk.connected(now())))
            while True:
                if message := talk.sending(now()):
                    # What a round trip through Tor takes.
                    await asyncio.sleep(self._config.contact)
                    await socket.send(encode(message))
                before = talk.updates
                turn = decode(await socket.receive(_PATIENCE), Turn, limit)
                if turn.strikes:
                    self._struck()
                try:
                    todo = talk.receive(turn, now())
                finally:
                    self._played.updates += talk.updates - before
                attacker = self._recruit.attacker
                if attacker is not None and attacker.leaves(turn.strikes):
                    attacker.anew()
                    await socket.send(encode(Leave()))
                    return True
                if isinstance(todo, Step):
                    made = self._recruit.stepper.update(todo.weights, self._recruit.rng)
                    talk.answer(await _search(todo.lock, todo.difficulty), made.delta, now(),
                                made.steps)
                elif isinstance(todo, Over):
                    return False
        finally:
            await socket.close()


async def _search(lock: bytes, difficulty: int) -> bytes:
    for start in itertools.count(0, _STRETCH):
        found = await asyncio.to_thread(puzzle.search, lock, difficulty, start, _STRETCH)
        if found is not None:
            return found
    raise AssertionError


def compare(table: Table, config: Config) -> dict[str, Any]:
    """One configuration in real time, and in as many simulated courses as :data:`COURSES`.

    Returns:
        The error in real time, those simulated, how far it is outside of their range, whether
        that is within :data:`TOLERANCE`; who was struck and how many updates there were, in real
        time and in the simulation of the same seed; and the hash rate, measured here.
    """
    rate = hash_rate()
    lived = asyncio.run(live(table, config))
    simulated = [simulate(table, replace(config, hash_rate=rate, seed=config.seed + i))
                 for i in range(COURSES)]
    errors = [course.error for course in simulated]
    outside = max(0.0, min(errors) - lived.error, lived.error - max(errors))
    told: dict[str, Any] = {"hash_rate": rate, "live_error": lived.error,
                            "simulated_errors": errors, "outside": outside,
                            "within": outside <= TOLERANCE}
    for name in ("honest_struck", "attackers_struck", "honest_updates", "attacker_updates"):
        told |= {f"live_{name}": getattr(lived, name),
                 f"simulated_{name}": getattr(simulated[0], name)}
    return told
