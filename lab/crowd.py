"""Hundreds of clients in one process, each with a session, a ledger and circuits of its own.

They are what ``tormentor solve`` runs (:class:`client.agent.Agent` and all below it), many in one
event loop. Killed and started again, each goes on from its session file, as that command does.

Run as a program: ``python -m lab.crowd PART``, where PART is a :class:`Part` as JSON. It ends when
all its clients have the model.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import click
import msgspec
from msgspec import Struct

from accord.circuit import Circuit, Route, fresh_identity
from accord.console import TorOptions, command, host_port, route, say, unless_away
from accord.control import Socks
from accord.files import private_directory
from accord.messages import SignedTask
from accord.problems import Problem
from accord.task import Task, open_task, task_id
from client.agent import Agent, fetch_task
from client.budget import Budget, Ledger, ledger_name
from client.dataset import Dataset, load
from client.events import Event, Told
from client.session import Outcome, Pace, Session, hold_session, load_session, save_session
from client.trainer import Trainer
from lab.coded import Code, CodedAgent, CodedTrainer, Record

PATIENCE = 600.0
"""Seconds that a crowd waits for a model to be there at all."""
AGAIN = 1.0
"""Seconds until a client that ended with a problem is started again, as a person would."""
BUDGET = 1e5
"""More than any trial spends: the ledgers are real, and are not what ends it."""
DELTA = 1e-12
"""So small that the plain sum is what counts, which takes no time to reckon."""
EPSILON = 0.01
BATCH = 4


class Part(Struct, frozen=True, kw_only=True):
    """The clients of one process.

    Attributes:
        onion: the model's address.
        home: one directory for each client is in it, and all that it keeps.
        data: the rows; all clients have the same ones, and each its own ledger of them.
        numbers: the clients'.
        min_clients: k of each.
        delay: each waits up to so many seconds before an update.
        pace: how soon they come back when the broker was away.
        width: coordinates of each client's own, to send digits (:mod:`lab.coded`) and record
            them; 0 for real updates, which are not recorded.
        clients: how many there are in all processes.
        record: the file for what is recorded.
        torrc: have a tor of our own on this network; else
        socks: HOST:PORT of a tor that runs, or
        direct: HOST:PORT of a broker without Tor.
    """

    onion: str
    home: str
    data: str
    numbers: list[int]
    min_clients: int
    delay: float
    record: str
    pace: dict[str, float] = {}
    width: int = 0
    clients: int = 0
    torrc: str = ""
    socks: str = ""
    direct: str = ""

    def way(self) -> TorOptions:
        """How the model is reached."""
        return TorOptions(
            mode="none" if self.direct else "system" if self.socks else "launch",
            socks=Socks(*host_port(self.socks, "socks")) if self.socks else None,
            torrc=Path(self.torrc) if self.torrc else None,
            direct=host_port(self.direct, "direct") if self.direct else None)

    def tor_directory(self) -> Path:
        """Of the tor of our own, when there is one."""
        return Path(f"{self.record}.tor") / "tor" / "0"


async def run(part: Part) -> None:
    """Run clients until each has the model.

    Raises:
        Problem: from the way there only; a client's own are told, and it is started again.
    """
    crowd = _Crowd(part)
    try:
        async with route(part.way(), private_directory(Path(f"{part.record}.tor")), True) as way:
            await crowd.run(way)
    finally:
        crowd.record.close()


class _Crowd:
    def __init__(self, part: Part) -> None:
        self.part = part
        self.record = Record(Path(part.record))
        self._pace = Pace(**part.pace)
        self._data: Dataset | None = None
        self._task: SignedTask | None = None
        self._fetching = asyncio.Lock()

    async def run(self, way: Route) -> None:
        async with asyncio.TaskGroup() as group:
            for number in self.part.numbers:
                group.create_task(self._client(way, number))

    async def _client(self, way: Route, number: int) -> None:
        """One client, started again whenever it ends before it has the model."""
        home = private_directory(Path(self.part.home) / f"{number:03}")
        path = home / "session.json"
        with hold_session(path):
            while True:
                try:
                    if not path.exists():
                        await self._join(way, home, path)
                    if load_session(path).outcome == "published" or (
                            await self._take_part(way, number, home, path)) == "published":
                        self.record.note("published", number)
                        return
                except Problem as problem:
                    self.record.note("gave-up", number)
                    say(f"Client {number}: {problem.sentence}")
                await asyncio.sleep(AGAIN)

    async def _join(self, way: Route, home: Path, path: Path) -> None:
        """Write the session that ``join`` would."""
        async with self._fetching:
            signed = self._task = self._task or await self._fetch(way)
        data = self._rows(open_task(signed, self.part.onion))
        save_session(path, Session(
            onion=self.part.onion, task=signed, data=str(data.path), fingerprint=data.fingerprint,
            epsilon=EPSILON, batch=BATCH, min_clients=self.part.min_clients, budget=BUDGET,
            delta=DELTA, max_difficulty=8, ledger=str(home / "ledgers"), delay=self.part.delay,
            output=str(home / "model.safetensors")))

    async def _fetch(self, way: Route) -> SignedTask:
        async def ask() -> SignedTask:
            async with Circuit(way, self.part.onion, fresh_identity()) as circuit:
                return await fetch_task(circuit)

        return await unless_away(ask, PATIENCE, lambda why: None)

    def _rows(self, task: Task) -> Dataset:
        if self._data is None:
            self._data = load(Path(self.part.data), task.data, BATCH)
        return self._data

    async def _take_part(self, way: Route, number: int, home: Path, path: Path) -> str:
        """What ``solve`` does: from the session file to the model."""
        session = load_session(path)
        task = open_task(session.task, session.onion)
        data = self._rows(task)
        if not self.part.width:
            return await solve(way, path, data, pace=self._pace)
        release = session.release(len(data.labels), task.dimension)
        ledgers = Path(session.ledger)
        with Ledger(ledgers, ledger_name(ledgers, data.identity, data.fingerprint)) as book:
            name = task_id(session.task)
            budget = Budget(book, name, release, session.budget, session.delta)
            code = Code(self.part.clients, self.part.width)
            coded = CodedTrainer(task, data, release, budget.spend, code, number)
            agent = CodedAgent(way, path, session, coded, book,
                               lambda: book.count(name) < code.capacity, _unheard,
                               pace=self._pace)
            agent.record, agent.code = self.record, code
            return await agent.run()


def _unheard(event: Event) -> None:
    """Nobody reads along."""


async def solve(
    way: Route, path: Path, data: Dataset, *, agent: type[Agent] = Agent, tell: Told = _unheard,
    pace: Pace | None = None,
) -> Outcome:
    """What ``tormentor solve`` does, without its words: from a session file to the model.

    Args:
        way: how the model is reached.
        path: of the session.
        data: the client's.
        agent: what takes part.
        tell: told what happens.
        pace: how long things take.

    Raises:
        Problem: whatever ends it.
    """
    session = load_session(path)
    task = open_task(session.task, session.onion)
    release = session.release(len(data.labels), task.dimension)
    ledgers = Path(session.ledger)
    with Ledger(ledgers, ledger_name(ledgers, data.identity, data.fingerprint)) as book:
        budget = Budget(book, task_id(session.task), release, session.budget, session.delta)
        trainer = Trainer(task, data, release, budget.spend, local_steps=session.local_steps)
        return await agent(
            way, path, session, trainer, book, lambda: budget.remaining > 0, tell, pace=pace).run()


@click.command("crowd")
@click.argument("part")
@command
async def main(part: str) -> None:
    """Run the clients of a PART (JSON)."""
    began = time.monotonic()
    await run(msgspec.json.decode(part, type=Part))
    say(f"All clients have the model after {time.monotonic() - began:.1f} s.")


if __name__ == "__main__":
    main()
