"""The stage of trainings over six continents: real processes, and distances that are emulated.

One :class:`Ground` holds what trainings share: a private Tor network whose relays are far apart
(:mod:`lab.wan`), a desk behind it, another one without Tor behind the ports of 25 regions. Each
:class:`Race` is one training on it: a model of its own, handed over by ``tormentor curate``, and
clients in processes (:mod:`lab.geo_crowd`) that train until it is known when the model arrived.

What the desk had on its disk, and when, stands in its trace (:mod:`lab.traced_desk`), so that to
measure costs the measured nothing: the errors over all training rows are reckoned here, from there.
"""

from __future__ import annotations

import asyncio
import math
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from accord.circuit import Circuit, Route, fresh_identity
from accord.console import unless_away
from accord.control import Socks
from accord.files import private_directory
from accord.messages import Status, decode
from accord.tor import held_port
from client.accounting import epsilon_total
from client.noise import Release
from lab.arrival import WITHIN, Arrival
from lab.credit import Parts, Table, converged, deal
from lab.demo import Command, Failed
from lab.geo_crowd import Team, ledger_of
from lab.setting import error_of
from lab.tornet import TorNetwork
from lab.traced_desk import TRACES, Commit, Trace
from lab.wan import Latency, Wan, measure

DELTA: Final = 1e-6
"""At which the price in privacy is told."""
ANNOUNCED: Final = 240.0
"""Seconds that a desk may take until it has reached itself."""
JOINING: Final = 300.0
"""Seconds that all clients may take to join."""
CONNECTIONS: Final = 50
"""On which round trips are measured, each with circuits of its own."""
LOOK: Final = 0.05
"""Seconds between two looks at the error, at least,"""
SLOWER: Final = 200
"""and at least this part of the time so far: it need not be known more exactly."""
_POLL: Final = 0.1
_TELL: Final = 10.0
_PINGS: Final = 4
_CURATING: Final = 120.0
_KEPT: Final = 400
"""Points of a curve that a result keeps, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """One training, as plain data.

    Attributes:
        clients: how many.
        tor: through Tor, or without.
        protocol: ``ours`` or ``paper`` (:mod:`lab.contact`).
        seed: of who holds what; the noise is real.
        step, schedule, local_steps: see :class:`accord.task.Training`; ``paper`` makes one.
        limit: seconds within which it must have arrived.
        epsilon, batch, clip: of each step.
        share: rows of each client, drawn with replacement from the training rows.
        validation: of the task, as :class:`accord.task.Validation`.
        validation_rows: of the curator.
        admission, update: the puzzles' trailing zeros.
        processes: that the clients share.
    """

    clients: int
    tor: bool
    protocol: str
    seed: int
    step: float
    schedule: str
    local_steps: int = 1
    limit: float = 900.0
    epsilon: float = 2.0
    batch: int = 10
    clip: float = 0.5
    share: int = 21_000
    validation: dict[str, Any] = field(default_factory=dict)
    validation_rows: int = 100
    admission: int = 2
    update: int = 1
    processes: int = 2

    @property
    def words(self) -> str:
        """For a line of progress."""
        return (f"{self.clients} clients, {'through Tor' if self.tor else 'no Tor'}, "
                f"{self.protocol}, seed {self.seed}")


class Ground:
    """What races share; as a context manager, and nothing of it is left.

    A network and a desk are started when the first race needs them.

    Args:
        directory: for all files; short, as sockets are in it. Made if need be, and cleared.
        table: the data of all races.
        say: told what goes on.
        connections: on which round trips are measured.
        log: what the processes say is added to it; None for a file in the directory.
    """

    def __init__(self, directory: Path, table: Table, say: Callable[[str], None],
                 connections: int = CONNECTIONS, log: Path | None = None) -> None:
        self.directory = directory.resolve()
        self._table = table
        self._say = say
        self._connections = connections
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._dealing = asyncio.Lock()
        self._wan: Wan | None = None
        self._network: TorNetwork | None = None
        self._places: dict[bool, _Place] = {}
        self._latency: dict[bool, Latency] = {}
        self._dealt: dict[tuple[int, int], _Dealt] = {}
        self._races = 0
        self._log = log or self.directory / "processes.log"

    async def __aenter__(self) -> Ground:
        shutil.rmtree(self.directory, ignore_errors=True)
        private_directory(self.directory)
        await self._stack.__aenter__()
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._stack.aclose()

    # -- what races share ----------------------------------------------------------------------

    async def open(self, tor: bool) -> None:
        """Have the desk with or without Tor ready, as the first race of the kind would.

        While the one with Tor is being opened nothing is delayed: whoever wants both opens that one
        first, before any race.

        Raises:
            Problem: of the network. Failed: of the desk.
        """
        async with self._opening:
            if self._wan is None:
                self._wan = await self._stack.enter_async_context(Wan())
            if tor not in self._places:
                self._places[tor] = await (self._far() if tor else self._near())

    async def _far(self) -> _Place:
        """A private network, and a desk behind it."""
        assert self._wan is not None
        # Tors agree within seconds or not at all (lab.wan).
        await self._wan.off()
        network = self._network = TorNetwork(self.directory / "net")
        self._stack.push_async_callback(network.down)
        self._say("Bringing up a private Tor network ...")
        await network.up(2, links=self._wan.links)
        self._say("Opening the desk behind it ...")
        onion = await self._desk("far", ["--torrc", network.extra_torrc])
        await self._wan.on()
        return _Place(self.directory / "far", onion, network.socks[0], network.socks[1], [],
                      str(network.extra_torrc))

    async def _near(self) -> _Place:
        """A desk without Tor, and a port of each region."""
        assert self._wan is not None
        self._say("Opening the desk without Tor ...")
        held = self._stack.enter_context(held_port())
        port = self._stack.enter_context(held.lent())
        onion = await self._desk("near", ["--tor", "none", "--listen", f"127.0.0.1:{port}"])
        ports = await self._wan.direct("127.0.0.1", port)
        await self._wan.on()
        return _Place(self.directory / "near", onion, None, None, ports)

    async def _desk(self, name: str, where: list[object]) -> str:
        desk = await self._stack.enter_async_context(Command(
            self._log, "broker", "--json", "--state", self.directory / name, "--max-models", 1000,
            "--linger", 1, *where, module="lab.traced_desk"))
        async with asyncio.timeout(ANNOUNCED):
            return str((await desk.line())["onion"])

    # -- one race ------------------------------------------------------------------------------

    async def race(self, race: Race) -> dict[str, Any]:
        """Run one; several may run at the same time.

        Returns:
            ``arrived``: seconds from "training begins" to arrival, None for not by the limit.
            ``joining``: from the first client's beginning until all were in and training began.
            ``target``, ``optimum``: error. ``curve``: [seconds, updates, error]. ``updates``: by
            arrival, else by the end; ``rate``: of them in a second. ``releases``: of a client by
            then, mean; ``epsilon_total``: what they come to; ``ledger``: releases in the ledgers at
            the end, mean. ``strikes``: given to all clients. ``latency``: in milliseconds.

        Raises:
            Failed: a process ended, or not all clients came in.
        """
        await self.open(race.tor)
        place = self._places[race.tor]
        self._races += 1
        home = private_directory(self.directory / f"race{self._races:03}")
        async with self._dealing:
            dealt = await asyncio.to_thread(self._deal, race)
        onion = await self._curate(race, place, dealt.parts, home)
        latency = await self._measure(race.tor, place, onion)
        trace = Trace(place.state / TRACES / onion)
        watch = _Watch(race, dealt)
        async with self._crowd(race, place, dealt, onion, home) as crowd:
            began = min([float((await each.line())["began"]) for each in crowd])
            await self._follow(race, trace, watch, began, crowd)
        told = watch.result()
        ledger = await asyncio.to_thread(_ledgers, race, home)
        shutil.rmtree(home, ignore_errors=True)
        self._say(f"{race.words}: " + (
            f"arrived after {told['arrived']:.2f} s, {told['updates']:,} updates"
            if told["arrived"] is not None else f"not within {race.limit:g} s"))
        return {**told, "joining": round(watch.began - began, 3), "ledger": ledger,
                "latency": latency.summary()}

    def _deal(self, race: Race) -> _Dealt:
        """The rows of a seed, on disk for all clients."""
        key = (race.seed, race.validation_rows)
        if key not in self._dealt:
            parts = deal(self._table, race.validation_rows, race.seed)
            stem = self.directory / f"rows{race.seed}-{race.validation_rows}"
            rows, labels = Path(f"{stem}.npy"), Path(f"{stem}-labels.npy")
            np.save(rows, parts.train[0])
            np.save(labels, parts.train[1])
            optimum = error_of(converged(*parts.train), parts.train)
            self._dealt[key] = _Dealt(parts, rows, labels, optimum)
        return self._dealt[key]

    async def _curate(self, race: Race, place: _Place, parts: Parts, home: Path) -> str:
        task, rows = home / "task.toml", home / "rows.csv"
        task.write_text(task_file(race, self._table))
        rows.write_text(validation_file(self._table, parts))
        where: list[object] = (
            ["--socks", place.socks] if place.socks is not None
            else ["--tor", "none", "--direct", f"127.0.0.1:{place.ports[0]}"])
        curate = Command(self._log, "curate", task, "--json", "--validation", rows, "--broker",
                         place.onion, "--state", home / "curator", *where)
        async with asyncio.timeout(_CURATING), curate:
            onion = str((await curate.line())["onion"])
            await curate.finish()
        return onion

    async def _measure(self, tor: bool, place: _Place, onion: str) -> Latency:
        """The round trips to the first model of a desk; known for all after it."""
        async with self._opening:
            if tor in self._latency:
                return self._latency[tor]
            routes = place.routes(self._connections)

            async def ask() -> Status:
                async with Circuit(routes[0], onion, fresh_identity()) as circuit:
                    return decode(await circuit.get("/status"), Status)

            await unless_away(ask, ANNOUNCED, lambda why: None)
            found = self._latency[tor] = await measure(routes, onion, pings=_PINGS)
        told = found.summary()
        self._say(f"Round trip {'through Tor' if tor else 'without Tor'}: median "
                  f"{told['median_ms']:g} ms, standard deviation {told['sd_ms']:g} ms")
        return found

    @asynccontextmanager
    async def _crowd(self, race: Race, place: _Place, dealt: _Dealt, onion: str,
                     home: Path) -> AsyncIterator[list[Command]]:
        """The clients' processes; killed in the end, so that nobody says that it leaves."""
        count = min(race.processes, race.clients)
        crowd = []
        try:
            for first in range(count):
                team = Team(
                    onion=onion, home=str(home), rows=str(dealt.rows), labels=str(dealt.labels),
                    share=race.share, seed=race.seed,
                    numbers=list(range(first, race.clients, count)), clients=race.clients,
                    epsilon=race.epsilon, batch=race.batch, local_steps=race.local_steps,
                    protocol=race.protocol,
                    torrc=place.torrc, ports=place.ports)
                each = Command(self._log, msgspec.json.encode(team).decode(),
                               module="lab.geo_crowd")
                crowd.append(await each.__aenter__())
            yield crowd
        finally:
            await asyncio.gather(*(each.kill() for each in crowd))

    async def _follow(self, race: Race, trace: Trace, watch: _Watch, began: float,
                      crowd: list[Command]) -> None:
        """Until it is known whether it arrived."""
        told = time.monotonic()
        while not watch.arrived:
            if any(each.ended for each in crowd):
                raise Failed(f"a process of clients ended ({race.words}); see {self._log}")
            if watch.late(time.monotonic()):
                break
            # In a thread: others race meanwhile.
            await asyncio.to_thread(watch.see, trace)
            now = time.monotonic()
            if not watch.training and now - began > JOINING:
                raise Failed(f"not all clients came in ({race.words}); see {self._log}")
            if now - told >= _TELL:
                told = now
                self._say(f"{race.words}: {watch.words(now)}")
            await asyncio.sleep(_POLL)


@dataclass(frozen=True, slots=True)
class _Place:
    """A desk: its state, its address; two SOCKS ports of the network's own tor and what makes
    another one join it, or the regions' ports."""

    state: Path
    onion: str
    socks: Socks | None
    others: Socks | None
    ports: list[int]
    torrc: str = ""

    def routes(self, count: int) -> list[Route]:
        """So many clients' ways."""
        if self.others is not None:
            return [Route(self.others)] * count
        return [Route(None, ("127.0.0.1", self.ports[i % len(self.ports)])) for i in range(count)]


@dataclass(frozen=True, slots=True)
class _Dealt:
    """The rows of a seed; where those to train with are; the converged model's error on them."""

    parts: Parts
    rows: Path
    labels: Path
    optimum: float


class _Watch:
    """Follows one training by its trace."""

    def __init__(self, race: Race, dealt: _Dealt) -> None:
        self.began = math.nan
        self.training = False
        self._race = race
        self._part = dealt.parts.train
        self._optimum = dealt.optimum
        self._arrival = Arrival(dealt.optimum + WITHIN)
        self._curve: list[tuple[float, int, float]] = []
        self._strikes = 0
        self._ended = ""

    def see(self, trace: Trace) -> None:
        """What was committed since the last time."""
        for commit in trace.more():
            self._take(commit)

    def _take(self, commit: Commit) -> None:
        self._strikes = commit.strikes
        if not self.training:
            if commit.phase != "training":
                return
            self.training, self.began = True, commit.at
        elif commit.phase != "training":
            self._ended = commit.phase
        seconds = commit.at - self.began
        last = self._curve[-1][0] if self._curve else -math.inf
        if seconds - last < max(LOOK, seconds / SLOWER) or self._arrival.seen:
            return
        error = error_of(commit.weights, self._part)
        self._curve.append((seconds, commit.updates, error))
        self._arrival.look(seconds, error)

    @property
    def arrived(self) -> bool:
        """Whether the arrival is seen."""
        return self._arrival.seen

    def late(self, now: float) -> bool:
        """Whether there is nothing more to wait for.

        Raises:
            Failed: training has paused or ended by itself, which is none of the measurement.
        """
        if self._ended:
            raise Failed(f"training is {self._ended} ({self._race.words})")
        # Whoever is there at the limit is looked at for as long as the rule says.
        late = self.training and now - self.began > self._race.limit
        return late and (self._arrival.since is None or self._arrival.since > self._race.limit)

    def words(self, now: float) -> str:
        """For a line of progress."""
        if not self.training:
            return "clients are joining"
        if not self._curve:
            return "training begins"
        _, updates, error = self._curve[-1]
        return (f"{now - self.began:.0f} s, {updates:,} updates, error {100 * error:.2f} % "
                f"(target {100 * (self._optimum + WITHIN):.2f} %)")

    def result(self) -> dict[str, Any]:
        """What came of it."""
        race, since = self._race, self._arrival.since if self._arrival.seen else None
        seconds, updates, _ = self._curve[-1]
        if since is not None:
            seconds, updates, _ = next(p for p in self._curve if p[0] >= since)
        releases = updates * race.local_steps / race.clients
        release = Release(race.epsilon, race.batch, race.share, self._part[0].shape[1])
        return {
            "arrived": None if since is None else round(since, 3),
            "optimum": round(self._optimum, 6), "target": round(self._optimum + WITHIN, 6),
            "updates": updates, "rate": round(updates / max(seconds, 1e-9), 2),
            "releases": round(releases, 1),
            "epsilon_total": round(epsilon_total({release: max(1, round(releases))}, DELTA), 4),
            "strikes": self._strikes, "curve": thinned(self._curve),
        }


def thinned(curve: list[tuple[float, int, float]]) -> list[list[float]]:
    """Points evenly over the course of a curve, the last one among them, rounded for a file."""
    every = max(1, len(curve) // _KEPT)
    kept = curve[::every] + ([curve[-1]] if (len(curve) - 1) % every else [])
    return [[round(seconds, 3), updates, round(error, 5)] for seconds, updates, error in kept]


def _ledgers(race: Race, home: Path) -> float:
    """Releases in the ledgers of a race that is over, mean over the clients."""
    counts = []
    for number in range(race.clients):
        with ledger_of(home, number) as book:
            counts.append(sum(book.counts().values()))
    return round(sum(counts) / len(counts), 1)


# -- what a curator hands over ---------------------------------------------------------------


def task_file(race: Race, table: Table) -> str:
    """The task of a race, as a curator's file (TOML)."""
    trip = 0.4 if race.tor else 0.03
    training: dict[str, Any] = {
        "mode": "asynchronous", "step": race.step, "schedule": race.schedule, "clip": race.clip,
        "local_steps": race.local_steps,
        # Not far more than can come: the sequential test divides its false alarms among them.
        "max_updates": math.ceil(race.clients * (1.5 * race.limit + 60) / trip),
        # So that a model whose clients are gone goes by itself.
        "deadline": 2 * race.limit + 120.0, "max_pause": 60.0,
    }
    parts: dict[str, dict[str, Any]] = {
        "training": training,
        "clients": {"minimum": race.clients, "maximum": race.clients, "silence": 60.0},
        "puzzles": {"admission": race.admission, "update": race.update},
        "validation": race.validation,
    }
    lines = ['title = "A race"', 'description = "Made by tormentor experiment table2."']
    for name, values in parts.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
    lines += ["", "[data]", f"target = {_toml(table.schema.target)}"]
    for column in table.schema.fields:
        lines += ["", "[[data.fields]]", f"name = {_toml(column.name)}"]
        if column.name == table.schema.target:
            lines.append('type = "integer"')
        else:
            center, scale = column.standard()
            lines += [f"center = {_toml(center)}", f"scale = {_toml(scale)}"]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    """A string, number or truth value; JSON writes these as TOML does."""
    return msgspec.json.encode(value).decode()


def validation_file(table: Table, parts: Parts) -> str:
    """The curator's rows as CSV: cells that the schema makes the same standardised rows of."""
    rows, labels = parts.validation
    features = table.schema.features()
    center, scale = np.array([column.standard() for column in features]).T
    # A row was made as long as 1, together with its constant 1, which is last.
    cells = center + scale * rows[:, :-1] / rows[:, -1:]
    lines = [",".join([*(column.name for column in features), table.schema.target])]
    lines += [",".join([*(f"{cell:.9g}" for cell in row), str(int(label))])
              for row, label in zip(cells, labels, strict=True)]
    return "\n".join(lines) + "\n"
