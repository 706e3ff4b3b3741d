"""Clients of a race (:mod:`lab.geo`): many in one process, each as ``tormentor`` makes them.

Each has a session file, a ledger on disk, sockets and circuits of its own, and its own sample of
the rows. They are :class:`client.agent.Agent`, or :class:`lab.contact.ContactAgent` for the paper's
protocol. They train until they are killed.

The last of a race's clients comes to the door when all others have their training conversation, or
their first contact, and were told to wait for it. So when training begins no circuit is still being
built, but the one's: that is part of joining.

Run as a program: ``python -m lab.geo_crowd TEAM``, where TEAM is a :class:`Team` as JSON, or the
path of a file with it: what begins with a brace is JSON. It says one line of JSON when its clients
begin to join: the moment on this machine's monotonic clock.

Where the others are on other machines (:mod:`lab.field`), nobody sees their files: then whoever
drives all machines opens the gate for the last client, when each of them is ready.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import click
import msgspec
import numpy as np
from msgspec import Struct

from accord.circuit import Circuit, Route, fresh_identity
from accord.console import command, host_port, say, unless_away
from accord.files import private_directory, write_whole
from accord.messages import SignedTask
from accord.problems import Problem
from client.agent import Agent, fetch_task
from client.budget import Ledger, ledger_name
from client.dataset import Dataset
from client.events import Event, Waiting
from client.session import Session, save_session
from lab.contact import ContactAgent
from lab.crowd import AGAIN, DELTA, PATIENCE, solve
from lab.field.deal import dealt
from lab.field.orders import BEGAN, GATE, READY, Began, own_tor, read

FIRST, STRIDE, OF = 2, 7, 25
"""Client i is in region FIRST + STRIDE i, modulo their number, where there are OF; where there are
fewer or more, in proportion. They are in the order of their distance, so ten clients are as far
away as two hundred: at the median, and in the mean number of round trips in a second, most of which
those who are near make."""
_WAITS = "waits"
_POLL = 0.1
BUDGET = 1e7
"""More than any race spends: the ledgers are real, and are not what ends it."""


class Team(Struct, frozen=True, kw_only=True):
    """The clients of one process.

    Attributes:
        onion: the model's address.
        home: one directory for each client is in it, and all that it keeps.
        rows, labels: arrays on disk (.npy), which all clients draw their samples from.
        share: rows of each client, drawn with replacement.
        seed: of who holds what.
        numbers: the clients'; clients: how many there are in all processes.
        epsilon, batch, local_steps: of each.
        protocol: ``ours`` or ``paper``.
        tor: through a tor of the process's own, as clients of one that has served hundreds of
            others before would wait for minutes.
        torrc: makes it join a private network; empty for the public one.
        tor_directory: of its data, kept; empty for one in the home.
        directs: HOST:PORT of a broker without Tor, one for each region (:func:`region`).
        gate: these are all clients of a machine, and the others are on others. Then there come to
            be, in the home: :data:`~lab.field.orders.BEGAN`, when they begin to join;
            :data:`~lab.field.orders.READY`, when all of them, but the race's last, wait; and that
            last one waits for :data:`~lab.field.orders.GATE`.
    """

    onion: str
    home: str
    rows: str
    labels: str
    share: int
    seed: int
    numbers: list[int]
    clients: int
    epsilon: float
    batch: int
    local_steps: int
    protocol: str
    tor: bool = False
    torrc: str = ""
    tor_directory: str = ""
    directs: list[str] = []
    gate: bool = False

    def direct(self, number: int) -> Route:
        """How a client reaches the model without Tor."""
        where = self.directs[region(number, len(self.directs))]
        return Route(None, host_port(where, "direct"))


def region(number: int, count: int) -> int:
    """Which of so many regions a client is in: as many clients are in one each."""
    stride = max(1, round(STRIDE * count / OF))
    while math.gcd(stride, count) != 1:
        stride += 1
    return (FIRST * count // OF + stride * number) % count


class Sample:
    """Rows drawn with replacement from a table that all samples share.

    Two hundred copies of it would take a gigabyte. What a trainer asks of its rows is those at
    some places; that is all that this can do.

    Args:
        rows: the table, (N, d).
        chosen: which of them, (n,), whole numbers.
    """

    def __init__(self, rows: np.ndarray, chosen: np.ndarray) -> None:
        self._rows = rows
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def take(self, places: np.ndarray, axis: int = 0) -> np.ndarray:
        """The rows at some places (whole numbers, (b,)): (b, d)."""
        return self._rows.take(self._chosen.take(places), axis=axis)


def held_by(team: Team, number: int, rows: np.ndarray, labels: np.ndarray) -> Dataset:
    """The data of one client; the same for the same seed and number."""
    rng = np.random.default_rng([team.seed, 7, number])
    chosen = rng.integers(0, len(labels), team.share, dtype=np.int32)
    name = f"{number:064x}"
    return Dataset(cast(np.ndarray, Sample(rows, chosen)), labels[chosen], name,
                   Path(team.home) / f"{number:03}.csv", name)


def ledgers(home: Path) -> list[int]:
    """Releases in the ledger of each client in a home, once their processes are no more.

    Raises:
        Problem: ``LOCKED``, one still lives; ``BAD_LEDGER``, ``DISK``.
    """
    counts = []
    for path in sorted(home.iterdir()):
        if re.fullmatch(r"\d{3,}", path.name):
            directory, name = path / "ledgers", f"{int(path.name):064x}"
            with Ledger(directory, ledger_name(directory, name, name)) as book:
                counts.append(book.releases)
    return counts


async def run(team: Team) -> None:
    """Join and train, until cancelled or killed.

    Raises:
        Problem: from the way there, or the rows; a client's own are told, and it is started again.
    """
    async with AsyncExitStack() as stack:
        tor = None
        if team.tor:
            directory = private_directory(
                Path(team.tor_directory or Path(team.home) / f"tor{team.numbers[0]}"))
            tor = await stack.enter_async_context(own_tor(team.torrc, directory))
        ways = [tor or team.direct(number) for number in team.numbers]
        crowd = _Crowd(team)
        if team.gate:
            home = private_directory(Path(team.home))
            write_whole(home / BEGAN, msgspec.json.encode(Began(time.time())))
        click.echo(msgspec.json.encode({"began": time.monotonic()}).decode())
        async with asyncio.TaskGroup() as group:
            if team.gate:
                group.create_task(crowd.ready())
            for number, way in zip(team.numbers, ways, strict=True):
                group.create_task(crowd.client(number, way))


class _Crowd:
    def __init__(self, team: Team) -> None:
        self._team = team
        self._rows, self._labels = dealt(Path(team.rows), Path(team.labels))
        self._task: SignedTask | None = None
        self._fetching = asyncio.Lock()

    async def client(self, number: int, way: Route) -> None:
        """One client, started again when it ends with a problem, as a person would."""
        team = self._team
        home = private_directory(Path(team.home) / f"{number:03}")
        path = home / "session.json"
        data = held_by(team, number, self._rows, self._labels)
        if number == team.clients - 1:
            await self._turn(number)
        while True:
            try:
                if not path.exists():
                    await self._join(way, data, home, path)
                await self._take_part(way, data, path)
                return
            except Problem as problem:
                say(f"Client {number}: {problem.sentence}")
            await asyncio.sleep(AGAIN)

    async def ready(self) -> None:
        """Say so, once all of ours wait but the race's last."""
        team = self._team
        await self._waiting(number for number in team.numbers if number != team.clients - 1)
        await asyncio.to_thread(write_whole, Path(team.home) / READY, b"")

    async def _turn(self, last: int) -> None:
        """Until all others wait for the last one."""
        if self._team.gate:
            await _there(Path(self._team.home) / GATE)
        else:
            await self._waiting(range(last))

    async def _waiting(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            await _there(Path(self._team.home) / f"{number:03}" / _WAITS)

    async def _join(self, way: Route, data: Dataset, home: Path, path: Path) -> None:
        """Write the session that ``join`` would. The task is fetched once for all."""
        team = self._team
        async with self._fetching:
            if self._task is None:
                self._task = await unless_away(lambda: _fetch(way, team.onion), PATIENCE, _unsaid)
        save_session(path, Session(
            onion=team.onion, task=self._task, data=str(data.path), fingerprint=data.fingerprint,
            epsilon=team.epsilon, batch=team.batch, min_clients=1, budget=BUDGET, delta=DELTA,
            max_difficulty=8, ledger=str(home / "ledgers"), output=str(home / "model.safetensors"),
            local_steps=team.local_steps))

    async def _take_part(self, way: Route, data: Dataset, path: Path) -> None:
        """What ``solve`` does."""
        agent = ContactAgent if self._team.protocol == "paper" else Agent
        await solve(way, path, data, agent=agent, tell=lambda event: _hear(event, path.parent))


async def _there(mark: Path) -> None:
    """Until a file is there."""
    # It is made by other processes too, so no event tells.
    while not await asyncio.to_thread(mark.exists):  # noqa: ASYNC110
        await asyncio.sleep(_POLL)


async def _fetch(way: Route, onion: str) -> SignedTask:
    async with Circuit(way, onion, fresh_identity()) as circuit:
        return await fetch_task(circuit)


def _hear(event: Event, home: Path) -> None:
    """Note that a client has its conversation, and waits for others."""
    if isinstance(event, Waiting):
        (home / _WAITS).touch()


def _unsaid(why: Any) -> None:
    """Nobody reads along."""


@click.command("geo-crowd")
@click.argument("team")
@command
async def main(team: str) -> None:
    """Run the clients of a TEAM: JSON, or the path of a file with it.

    \b
    Example:
      python -m lab.geo_crowd /var/lib/tormentor/race/team.json
    """
    await run(msgspec.json.decode(team, type=Team) if team.startswith("{")
              else read(Path(team), Team))


if __name__ == "__main__":
    main()
