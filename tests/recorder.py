"""Clients that train honestly over real sockets and write down everything that they are sent, and
a broker that tells the test, and nobody else, what was judged: for the test of
indistinguishability."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from broker_world import solve
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from lab_world import make_table

from accord.circuit import Circuit, Route, fresh_identity
from accord.messages import (
    AdmissionPuzzle,
    Hello,
    Join,
    Pull,
    Push,
    Status,
    Turn,
    Wait,
    Welcome,
    Work,
    decode,
    encode,
    turn_limit,
    vector_to_wire,
)
from accord.onion import onion_from_seed
from accord.task import sign
from broker.admission import session_name
from broker.brokerage import Brokerage
from broker.rounds import Rounds
from broker.store import Store
from broker.verdict import Update, Verdict
from lab import live
from lab.credit import deal
from lab.setting import Config, Recruit, make_task, recruit


class WatchedRounds(Rounds):
    """The test ``rounds``, whose coins the test can read.

    Attributes:
        answers: of each session, in order: which round its answer came in, and that round's coin.
    """

    def __init__(self, *means: Any) -> None:
        super().__init__(*means)
        self.number = 0
        self.answers: dict[bytes, list[tuple[int, bool]]] = {}

    def begin(self, live: np.ndarray, answers: int | None, chance: float) -> None:
        super().begin(live, answers, chance)
        self.number += 1

    def judge(self, update: Update, live: np.ndarray) -> Verdict:
        assert self._round is not None
        told = self.number, self._round.judged
        self.answers.setdefault(update.name, []).append(told)
        return super().judge(update, live)


@dataclass
class Bulletin:
    """What accomplices tell each other at once."""

    tickets: int = 0
    weights: dict[bytes, int] = field(default_factory=dict)


NAMES = (
    "size", "arrival", "round trip", "round trip before", "mean round trip on these weights",
    "longest round trip on these weights", "strikes", "struck", "judged", "difficulty", "same",
    "distance", "marker", "lacks", "mine on these weights", "ours on these weights",
    "since these weights", "ours since mine", "norm", "own update", "status size", "status updates",
    "status updates since", "status error", "status error since", "status judged", "status struck",
    "status seconds", "status round trip", "ticket", "lock", "hour",
)


class Recorder:
    """One client: honest updates, and a line of features for each, made before it is sent.

    Attributes:
        token: of its session.
        features: (tickets, len(NAMES)); one line for each update that was acknowledged.
        pause: seconds, on average, that it takes for an update besides; 0 for none.
        polls: whether it asks for /status before each update.
    """

    def __init__(self, way: Route, onion: str, dimension: int, recruit: Recruit,
                 bulletin: Bulletin, pause: float, polls: bool) -> None:
        self._way, self._onion, self._dimension = way, onion, dimension
        self._recruit, self._bulletin = recruit, bulletin
        self.pause, self.polls = pause, polls
        self.token = b""
        self.features: list[list[float]] = []
        self._trips: list[float] = [0.0]
        self._on_these: list[float] = []
        self._weights: np.ndarray | None = None
        self._first_seen = self._began = 0.0
        self._seen_tickets = 0
        self._delta = np.zeros(dimension)
        self._status: Status | None = None

    async def run(self) -> None:
        """Join, and train until somebody cancels."""
        limit = turn_limit(self._dimension)
        async with Circuit(self._way, self._onion, fresh_identity()) as circuit:
            door = decode(await circuit.get("/puzzle"), AdmissionPuzzle)
            join = Join(door.lock, solve(door.lock, door.difficulty), 1)
            self.token = decode(await circuit.post("/join", encode(join)), Welcome).token
            socket = await circuit.websocket("/train", limit)
            try:
                await socket.send(encode(Hello(self.token)))
                self._began = asked = time.perf_counter()
                await socket.send(encode(Pull()))
                ticket, line = b"", list[float]()
                while True:
                    raw = await socket.receive(60.0)
                    came = time.perf_counter()
                    turn = decode(raw, Turn, limit)
                    if isinstance(turn.next, Wait):
                        continue  # for the others of a synchronous round
                    if ticket:
                        assert turn.receipt == ticket
                        self.features.append(line)
                    if not isinstance(turn.next, Work):
                        return
                    line, weights = self._look(raw, turn, turn.next, came, came - asked)
                    line += await self._poll(circuit, turn.next)
                    if self.pause:
                        await asyncio.sleep(random.expovariate(1 / self.pause))
                    self._delta = self._recruit.stepper.update(
                        weights, self._recruit.rng).delta.astype(np.float64)
                    ticket = turn.next.ticket
                    push = Push(ticket, solve(turn.next.lock, turn.next.difficulty),
                                vector_to_wire(self._delta))
                    asked = time.perf_counter()
                    await socket.send(encode(push))
            finally:
                await socket.close()

    def _look(self, raw: bytes, turn: Turn, work: Work, came: float, trip: float
              ) -> tuple[list[float], np.ndarray]:
        weights = np.frombuffer(work.weights, "<f4").astype(np.float64)
        moved = np.zeros(self._dimension) if self._weights is None else weights - self._weights
        same = not moved.any()
        if not same or self._weights is None:
            self._first_seen, self._on_these = came, []
        self._on_these.append(trip)
        ours = self._bulletin
        ours.tickets += 1
        ours.weights[work.weights] = ours.weights.get(work.weights, 0) + 1
        length = float(self._delta @ self._delta)
        marker = float(moved @ self._delta) / length if length else 0.0
        # Milliseconds, to a tenth.
        ms = [round(1e4 * t) / 10 for t in (came - self._began, trip, self._trips[-1], float(
            np.mean(self._on_these)), max(self._on_these), came - self._first_seen)]
        line = [
            len(raw), ms[0], ms[1], ms[2], ms[3], ms[4], turn.strikes, turn.struck, turn.judged,
            work.difficulty, same, float(np.linalg.norm(moved)), marker, marker < 0.5,
            len(self._on_these), ours.weights[work.weights], ms[5],
            ours.tickets - self._seen_tickets, float(np.linalg.norm(weights)), length**0.5]
        self._trips.append(trip)
        self._weights, self._seen_tickets = weights, ours.tickets
        return line, weights

    async def _poll(self, circuit: Circuit, work: Work) -> list[float]:
        before, size, trip = self._status, 0, 0.0
        if self.polls:
            asked = time.perf_counter()
            raw = await circuit.get("/status")
            trip, size = time.perf_counter() - asked, len(raw)
            self._status = decode(raw, Status)
        told = self._status
        rest = [work.ticket[0], work.lock[0], time.time() % 3600]
        if told is None:
            return [0.0] * 9 + rest
        before = before or told
        return [size, told.updates, told.updates - before.updates, told.error or 0.0,
                (told.error or 0.0) - (before.error or 0.0), told.judged, told.struck,
                told.seconds, round(1e4 * trip) / 10, *rest]


@dataclass(frozen=True)
class Recorded:
    """What came of it, in the order in which answers came to each recorder.

    Attributes:
        features: (n, len(NAMES)).
        rounds: (n,): which round each answer came in.
        judged: (n,): that round's coin.
    """

    features: np.ndarray
    rounds: np.ndarray
    judged: np.ndarray


async def record(directory: Path, tickets: int, seed: int, together: bool = False) -> Recorded:
    """Three fast recorders among five slower clients, until the three have so many tickets.

    Fast ones answer several times in a round: so they see most of what a round might show while
    it still counts. Where all work ``together``, in synchronous rounds, nobody is slow.
    """
    mode = "synchronous" if together else "asynchronous"
    config = Config(
        clients=8, batch=20, validation_rows=1500, seed=seed, admission=1, update=1, seconds=1e4,
        training={"mode": mode, "schedule": "constant", "step": 0.5},
        validation={"test": "rounds", "rate": 0.3, "metric": "loss", "threshold": 1e9, "evict": 0})
    table = make_table(8000)
    parts = deal(table, config.validation_rows, seed)
    task = make_task(table, config, parts)
    brokerage = Brokerage(secrets.token_bytes(32), random.Random(seed).randbytes)
    brokerage.accept(sign(task, Ed25519PrivateKey.generate()), *parts.validation,
                     asyncio.get_running_loop().time())
    recruits, _ = recruit(task, parts, config)
    onion, bulletin = onion_from_seed(secrets.token_bytes(32)), Bulletin()
    store = Store(directory / "model.db")
    try:
        async with live.serve(brokerage, store) as way:
            clients = [Recorder(way, onion, task.dimension, each, bulletin if i < 3 else Bulletin(),
                                0.0 if together or i < 3 else 0.05, i == 0)
                       for i, each in enumerate(recruits)]
            tasks = [asyncio.create_task(client.run()) for client in clients]
            while sum(len(c.features) for c in clients[:3]) < tickets:
                done, _ = await asyncio.wait(tasks, timeout=0.05)
                assert not done, [each.result() for each in done]
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        store.close()
    watched = brokerage._validator._rounds
    assert isinstance(watched, WatchedRounds)
    assert brokerage.status(0.0).strikes == 0
    features, truth = [], []
    for number, client in enumerate(clients[:3]):
        known = watched.answers[session_name(client.token)]
        # The last push may have been taken, and its receipt not have come.
        assert 0 <= len(known) - len(client.features) <= 1
        features += [[*line, number] for line in client.features]
        truth += known[: len(client.features)]
    number, judged = np.array(truth, dtype=int).T
    return Recorded(np.array(features, dtype=np.float64), number, judged.astype(bool))
