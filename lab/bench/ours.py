"""A training by us, without Tor: the real broker and real clients, in a process each.

The broker is :class:`broker.model_app.ModelApp` on a store that is on disk, behind its door, on
loopback. Clients are :class:`client.agent.Agent`, each with a session file, a ledger on disk, a
socket of its own; as Flower's clients they share a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import secrets
import signal
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from accord.circuit import Route
from accord.files import private_directory
from accord.messages import SignedTask
from accord.onion import onion_from_seed
from accord.task import Clients, sign
from broker.brokerage import Brokerage
from broker.records import Changes
from broker.store import Store
from client.dataset import Dataset
from client.session import Session, save_session
from lab.bench.flower_runs import Course
from lab.credit import deal, load
from lab.crowd import solve
from lab.demo import Failed
from lab.live import serve
from lab.setting import Config, make_task

_BUDGET: Final = 1e5
"""More than any measurement spends: the ledgers are real, and are not what ends it."""
_DELTA: Final = 1e-12
_STARTS: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One training by us.

    Attributes:
        clients: how many.
        seconds: how long it goes on at most, from when training begins.
        processes: that they share.
        updates: or until so many were applied.
        local_steps: of each update; step: length of a step, falling: as 1/sqrt(t).
        batch, epsilon: of each step. Our clients always add noise.
        share: rows of each client, drawn with replacement.
        update: trailing zeros of an update's puzzle.
        data: the credit data; None for made data.
        seed: of who holds what.
    """

    clients: int
    seconds: float
    updates: int
    local_steps: int
    step: float
    falling: bool = True
    processes: int = 1
    batch: int
    epsilon: float
    share: int
    update: int = 2
    data: Path | None = None
    seed: int = 0
    validation_rows: int = 100


def run(plan: Plan) -> Course:
    """Train; what was on the broker's disk, and when, from when training began (all had joined).

    Raises:
        Failed: a process ended before it had done.
    """
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="bench-") as name, contextlib.ExitStack() as stack:

        def start(target: Any, *given: Any) -> Connection:
            mine, its = spawn.Pipe()
            process = spawn.Process(target=target, args=(*given, its), daemon=True)
            process.start()
            its.close()
            stack.callback(process.join)
            stack.callback(process.kill)
            return mine

        def hear(told: Connection, seconds: float) -> Any:
            with contextlib.suppress(EOFError):
                if told.poll(seconds):
                    return told.recv()
            raise Failed("a process of ours ended, or did not begin")

        broker = start(_broker, plan, Path(name))
        where = hear(broker, _STARTS)
        for place in range(plan.processes):
            start(_clients, plan, range(place, plan.clients, plan.processes), Path(name), where)
        rows = hear(broker, _STARTS + plan.seconds + 60.0)
    return Course([at for at, _, _ in rows], np.array([w for _, _, w in rows]),
                  [made for _, made, _ in rows])


# -- the broker's process --------------------------------------------------------------------


class _Watched(Store):
    """Writes down what the disk held, and when."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.rows: list[tuple[float, int, np.ndarray]] = []

    def write(self, changes: Changes) -> None:
        """As the store does."""
        began = time.perf_counter()
        super().write(changes)
        model = changes.model
        if model is not None and model.seconds is not None:
            self.rows.append((model.seconds + time.perf_counter() - began, model.updates,
                              model.weights.copy()))


def _broker(plan: Plan, directory: Path, told: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_serve(plan, directory, told))


async def _serve(plan: Plan, directory: Path, told: Connection) -> None:
    config = Config(
        clients=plan.clients, validation_rows=plan.validation_rows, admission=0,
        update=plan.update, seed=plan.seed, epsilon=plan.epsilon, batch=plan.batch,
        training={"step": plan.step, "schedule": "1/sqrt(t)" if plan.falling else "constant",
                  "local_steps": plan.local_steps, "max_updates": 10_000_000})
    table = load(plan.data)
    parts = deal(table, plan.validation_rows, plan.seed)
    task = replace(make_task(table, config, parts), clients=Clients(
        minimum=plan.clients, maximum=plan.clients, silence=60.0))
    signed = sign(task, Ed25519PrivateKey.generate())
    seed = secrets.token_bytes(32)
    brokerage = Brokerage(secrets.token_bytes(32), secrets.token_bytes)
    brokerage.accept(signed, *parts.validation, asyncio.get_running_loop().time())
    store = _Watched(directory / "model.db")
    async with serve(brokerage, store) as way:
        told.send((way, onion_from_seed(seed), signed))
        while not store.rows or (  # noqa: ASYNC110  (a store writes in a thread)
                store.rows[-1][0] < plan.seconds and store.rows[-1][1] < plan.updates):
            await asyncio.sleep(0.05)
        told.send(list(store.rows))
        # Clients are killed first, so that none of them sees the broker go.
        await asyncio.sleep(_STARTS)


# -- the clients' process --------------------------------------------------------------------


def _clients(plan: Plan, numbers: range, directory: Path, where: tuple[Route, str, SignedTask],
             told: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_take_part(plan, numbers, directory, *where))


async def _take_part(plan: Plan, numbers: range, directory: Path, way: Route, onion: str,
                     signed: SignedTask) -> None:
    table = load(plan.data)
    rows, labels = deal(table, plan.validation_rows, plan.seed).train
    async with asyncio.TaskGroup() as group:
        for number in numbers:
            mine = np.random.default_rng([7, number]).integers(0, len(labels), plan.share)
            data = Dataset(rows[mine], labels[mine], f"{number:064x}", directory / f"{number}.csv",
                           f"{number:064x}")
            group.create_task(_client(plan, private_directory(directory / f"{number:03}"), way,
                                      onion, signed, data))


async def _client(plan: Plan, home: Path, way: Route, onion: str, signed: SignedTask,
                  data: Dataset) -> None:
    path = home / "session.json"
    save_session(path, Session(
        onion=onion, task=signed, data=str(data.path), fingerprint=data.fingerprint,
        epsilon=plan.epsilon, batch=plan.batch, min_clients=1, budget=_BUDGET, delta=_DELTA,
        max_difficulty=8, ledger=str(home / "ledgers"), output=str(home / "model.safetensors"),
        local_steps=plan.local_steps))
    await solve(way, path, data)
